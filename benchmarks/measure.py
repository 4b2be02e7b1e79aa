"""What the benchmarks share: times, peak memory, and the table that they print."""

from __future__ import annotations

import csv
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch


def fastest(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """Minimum time of each call in seconds, the calls taking turns for about `seconds` in all."""
    best = [float("inf")] * len(calls)
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    repeats = 0
    while repeats < 3 or time.perf_counter() < end:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
        repeats += 1
    return best


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


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown processor"


def report(rows: list[dict[str, object]], path: Path | None) -> None:
    """Prints a Markdown table below a line about the machine; writes it to a CSV file if asked."""
    print(
        f"\n{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()})\n"
    )
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    if path:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
