"""Time and memory against length, one head of size 64: time grows as N^2, memory as N."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.measure import fastest, limit_memory_to_what_is_free, peak_beyond_results
from benchmarks.suite import Row, Settings, Step
from benchmarks.work import ATTENTIONS, WORK

SHORT_RUN = 130  # loads all code, before memory is measured
LARGEST_MATH = 8192  # whose second derivatives take 2.8 GiB on the math path
MEMORY = ("forward + backward", "double backward", "jvp")


def _case(length: int) -> Case:
    return Case("length", heads=1, queries=length)


def time_row(length: int, work: str, settings: Settings) -> Row:
    """Milliseconds of all three."""
    case = _case(length)
    inputs = case.inputs()
    names = [name for name in ATTENTIONS if name != "math" or length <= LARGEST_MATH]
    calls = {name: WORK[work](ATTENTIONS[name](case, inputs), inputs) for name in names}
    times = fastest(calls, settings.seconds / 2)
    milliseconds = {
        f"{name} ms": f"{times[name] * 1e3:.4g}" if name in times else "" for name in ATTENTIONS
    }
    return {"length": str(length), "what": work, **milliseconds}


def peak_of(length: int, work: str, attention: str, threads: int) -> int:
    """Bytes beyond inputs and results; called in a process of its own."""
    torch.set_num_threads(threads)
    limit_memory_to_what_is_free()

    def prepare(n: int) -> Callable[[], list[Tensor]]:
        case = _case(n)
        inputs = case.inputs()
        return WORK[work](ATTENTIONS[attention](case, inputs), inputs)

    prepare(SHORT_RUN)()
    return peak_beyond_results(prepare(length))


def memory_row(length: int, work: str, settings: Settings) -> Row:
    """Peak memory in MiB, each from a fresh process; empty where there is not so much."""
    row = {"length": str(length), "what": work}
    for attention in ("torch_ext", "math"):
        row[f"{attention} MiB"] = ""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                peak = pool.submit(peak_of, length, work, attention, settings.threads).result()
                row[f"{attention} MiB"] = f"{peak / 2**20:.1f}"
            except RuntimeError as error:
                if "allocate memory" not in str(error):
                    raise
    return row


def steps(settings: Settings) -> Iterator[Step]:
    """Times up to the largest length, then memory."""
    largest = 2048 if settings.quick else 16384
    for work in ("forward", "forward + backward"):
        for length in (256 * 2**i for i in range((largest // 256).bit_length())):
            name = f"time at length {length} {work}"
            yield Step("time", name, partial(time_row, length, work, settings))
    lengths = (1024, 4096) if settings.quick else (1024, 2048, 4096, 8192)
    for work in MEMORY:
        for length in lengths if work == MEMORY[0] else lengths[-1:]:
            name = f"memory at length {length} {work}"
            if not (settings.quick and work != MEMORY[0]):
                yield Step("memory", name, partial(memory_row, length, work, settings))
