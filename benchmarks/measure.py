"""Times and peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def fastest(
    calls: Mapping[str, Callable[[], object]], seconds: float, turn: float = 0.0
) -> dict[str, float]:
    """Minimum time of each call in seconds, the calls taking turns for about `seconds` in all.

    A shared or throttled machine slows all of them alike. A turn is one call, or as many as fit
    into `turn` seconds: for libraries with threads of their own, which first have to wait until the
    threads of the library before them sleep.
    """
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for name, call in calls.items():
            begin = start = time.perf_counter()
            while True:
                call()
                now = time.perf_counter()
                best[name] = min(best[name], now - start)
                if now - begin >= turn:
                    break
                start = now
        rounds += 1
    return best


def in_rounds(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    clock: Callable[[Callable[[], object]], float],
) -> dict[str, list[float]]:
    """Times of each call in seconds, one of each round, the calls taking turns in a round.

    Ratios within a round are fair where the clock rate of the device changes from round to round.
    """
    for call in calls.values():
        clock(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for name, call in calls.items():
            times[name].append(clock(call))
        rounds += 1
    return times


def kernel_says(field: str, file: str = "/proc/self/status") -> int:
    """Bytes that this process holds (VmRSS), or held at its worst moment (VmHWM), and the like."""
    with open(file, encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def limit_memory_to_what_is_free() -> None:
    """Allocations that do not fit raise from now on, so that no other process is ended for them."""
    free = kernel_says("MemAvailable", "/proc/meminfo")
    resource.setrlimit(resource.RLIMIT_AS, (kernel_says("VmSize") + free, resource.RLIM_INFINITY))


def peak_beyond_results(call: Callable[[], list[torch.Tensor]]) -> int:
    """Bytes by which the process grew at the worst moment of the call, less what it returns.

    Honest only where nothing else ran before: freed memory that the process kept is not seen.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the worst moment is from now on
    before = kernel_says("VmRSS")
    results = call()
    peak = kernel_says("VmHWM") - before
    return peak - sum(x.numel() * x.element_size() for x in results)
