"""Times of the device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

BURST = 2e-3  # seconds that one reading covers, as many calls as that takes
MOST_CALLS = 50
CYCLES = 2e9  # of the device in a second, about
LONGEST_SLEEP = 20e-3

Call = Callable[[], object]


class Clock:
    """Seconds that a call takes; on a GPU those of its work there, without the launches.

    A GPU sleeps until the calls of a burst are queued: only where queueing takes longer than their
    work does the time of the launches count. What fits into the caches is found there.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.calls: dict[Call, tuple[int, float]] = {}  # in a burst, and seconds to queue it

    def __call__(self, call: Call) -> float:
        """One reading. The first of a call warms up."""
        if not self.on_gpu:
            return _wall_clock(call)
        if call not in self.calls:
            self.calls[call] = self._burst_of(call)
        count, queueing = self.calls[call]
        torch.cuda._sleep(int(min(1.5 * queueing, LONGEST_SLEEP) * CYCLES))
        return _events(call, count)[0]

    def _burst_of(self, call: Call) -> tuple[int, float]:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        once, queueing = _events(call, 3)
        count = min(MOST_CALLS, max(1, round(BURST / once)))
        return count, queueing / 3 * count


def _events(call: Call, count: int) -> tuple[float, float]:
    """Seconds of one call on the device, and those it took to queue all."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    now = time.perf_counter()
    for _ in range(count):
        call()
    queueing = time.perf_counter() - now
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count, queueing


def _wall_clock(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
