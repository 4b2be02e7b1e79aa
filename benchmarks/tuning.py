"""What `make tune` tries of each choice of csrc/cpu/choices.h, and how it is timed.

A number is read once in a process, so each value has a worker process. Workers take turns on the
same case, all others waiting meanwhile, so that a shared or throttled machine slows all alike.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import torch_ext  # noqa: F401  (its operators, ready before workers are forked)
from benchmarks.cases import Case
from benchmarks.measure import fastest
from benchmarks.work import WORK, ours

HEADER = Path(__file__).parents[1] / "csrc" / "cpu" / "choices.h"
VARIABLE = "TORCH_EXT_CHOICES"
ROUNDS = 4  # turns of each worker, at least


def defaults() -> dict[str, int]:
    """The numbers as choices.h has them, by name."""
    _, _, after = HEADER.read_text(encoding="utf-8").partition("struct Choices {")
    found = re.findall(r"^  int64_t (\w+) = (\d+);$", after.partition("\n};")[0], re.M)
    return {name: int(number) for name, number in found}


@dataclass(frozen=True)
class Trial:
    """Values for one choice, the default among them, and cases, (case, work), that it concerns."""

    choice: str
    values: tuple[int, ...]
    cases: tuple[tuple[Case, str], ...]


def _all(works: tuple[str, ...], *cases: Case) -> tuple[tuple[Case, str], ...]:
    return tuple((case, work) for case in cases for work in works)


_BOTH = ("forward", "backward")
_FEW = tuple(
    Case(f"N {n}, M {m}, D {d}", heads=8, queries=n, keys=m, head_size=d)
    for m, d in ((1024, 64), (2048, 128))
    for n in (4, 8, 10, 12, 16)
)
_LONG = (
    Case("N 1024, D 64", heads=4, queries=1024),
    Case("N 1024, D 128", heads=4, queries=1024, head_size=128),
    Case("N 512, D 64", "float64", heads=4, queries=512),
)
_TASKS = (
    Case("N 2048, D 64", heads=2, queries=2048),
    Case("one head, N 4096, D 64", heads=1, queries=4096),
    Case("N 2048, D 128", "bfloat16", heads=2, queries=2048, head_size=128),
    Case("N 2048, causal", "float16", heads=2, queries=2048, causal=True),
)
_DECODE = (
    Case("M 4096, D 128", queries=1, keys=4096, head_size=128),
    Case("M 4096, D 128", "bfloat16", queries=1, keys=4096, head_size=128),
    Case("N 4, M 2048, D 64", queries=4, keys=2048),
    Case("one head, M 16384, D 64", heads=1, queries=1, keys=16384),
)
_TINY = tuple(
    Case(f"{h} heads, N {n}, D {d}", heads=h, queries=n, head_size=d)
    for h, n, d in ((2, 16, 8), (2, 16, 32), (4, 16, 32), (8, 16, 32), (8, 2, 32), (32, 2, 32))
)
_GROUPS = tuple(
    Case(f"N {n}, 32 heads on 2", heads=32, key_heads=2, queries=n, keys=2048) for n in (1, 4)
)
_GRADIENTS = (
    Case("N 1024, D 64", queries=1024),
    Case("N 1024, D 128", heads=4, queries=1024, head_size=128),
    Case("one head, N 2048", heads=1, queries=2048),
    Case("N 1024, causal", queries=1024, causal=True),
)
_FEW_KEYS = (
    Case("one head, N 256, M 256", heads=1, queries=256),
    Case("N 256, M 256", queries=256),
    Case("32 heads on 1, N 128, M 256", heads=32, key_heads=1, queries=128, keys=256),
)
_VERY_FEW_KEYS = tuple(
    Case(f"N 512, M {m}, D {d}", queries=512, keys=m, head_size=d)
    for m in (1, 4, 8, 16)
    for d in (32, 64, 128)
)
_MANY_HEADS = Case("160 heads, N 512, M 400", batch=20, queries=512, keys=400)  # 40 MiB of dq
_BIAS = tuple(
    Case(f"bias, N {n}", heads=4, queries=n, mask="learned bias") for n in (128, 512, 1024)
)

TRIALS = (
    Trial("tile_queries", (32, 48, 64, 96, 128), _all(_BOTH, *_LONG)),
    Trial("tile_keys", (48, 72, 96, 144, 192), _all(_BOTH, *_LONG)),
    Trial("task_tiles", (1, 2, 4, 8), _all(("forward",), *_TASKS)),
    Trial("chunk_keys", (192, 288, 384, 576, 768), _all(("backward",), *_GRADIENTS)),
    Trial("chunk_queries", (32, 64, 128, 192, 384), _all(("backward",), *_FEW_KEYS)),
    Trial("most_chunks", (4, 8, 16), _all(("backward",), Case("one head", heads=1, queries=4096))),
    Trial("stream_mib", (1, 16, 1024), _all(("backward",), *_DECODE)),
    Trial(
        "kept_keys",
        (1024, 2048, 4096),
        _all(
            ("double backward",),
            Case("N 2048, D 64", heads=2, queries=2048),
            Case("one head, N 4096, D 64", heads=1, queries=4096),
        ),
    ),
    Trial("partial_mib", (8, 32, 128), _all(("backward",), _MANY_HEADS)),
    Trial("private_slice", (4096, 65536, 1048576), _all(("backward",), *_BIAS)),
    Trial("few_queries", (0, 4, 8, 10, 12, 16), _all(_BOTH, *_FEW)),
    Trial("few_keys", (0, 2, 4, 8, 16), _all(_BOTH, *_VERY_FEW_KEYS)),
    Trial("task_rows", (4, 8, 16, 32, 64), _all(("forward",), *_GROUPS)),
    Trial("one_thread", (0, 4096, 16384, 65536), _all(_BOTH, *_TINY)),
    Trial("head_cost", (0, 512, 1024, 2048), _all(_BOTH, *_TINY)),
    Trial("row_keys", (64, 128, 256, 512), _all(("forward",), *_DECODE)),
    Trial(
        "row_chunk_numbers",
        (16384, 32768, 65536, 131072, 262144),
        _all(("forward",), *_DECODE),
    ),
    Trial("most_row_chunks", (16, 64, 256), _all(("forward",), *_DECODE[-1:])),
)


def _serve(connection: Connection, choice: str, threads: int) -> None:
    """A worker: (case, work) prepares, seconds measure, None ends; each is answered."""
    os.environ[VARIABLE] = choice
    torch.set_num_threads(threads)
    # From now on glibc reuses what was freed, up to this size. Else one process would do so and
    # another map fresh pages for every result, which takes longer than many a case.
    torch.empty(31 << 20, dtype=torch.uint8)
    call: Callable[[], object] = lambda: None  # noqa: E731
    while (order := connection.recv()) is not None:
        try:
            if isinstance(order, float):
                answer: object = fastest({"": call}, order)[""]
                time.sleep(0.005)  # until torch's threads, which wait in a loop at first, sleep
            else:
                case, work = order
                torch.manual_seed(0)
                inputs = case.inputs()
                call = WORK[work](ours(case, inputs), inputs)
                answer = None
        except Exception as error:
            answer = error
        connection.send(answer)
    connection.send(time.process_time())


class Workers:
    """A process for each value of a choice; used in a with statement."""

    def __init__(self, choice: str, values: tuple[int, ...], threads: int) -> None:
        # Forked from a server that has imported all of this and has not calculated anything.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.run", "benchmarks.tuning"])
        self.seconds = 0.0  # of processors, known at the end
        self._connections, self._processes = [], []
        for value in values:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, f"{choice}={value}", threads))
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            if kind is None:
                connection.send(None)
                self.seconds += connection.recv()
            else:
                process.terminate()
            process.join()

    def times(self, case: Case, work: str, seconds: float) -> list[float]:
        """Shortest time of each worker in seconds, of about `seconds` that each has.

        Raises:
            RuntimeError: a worker's own error.
        """
        for connection in self._connections:
            self._ask(connection, (case, work))
        best = [math.inf] * len(self._connections)
        for _ in range(ROUNDS):
            for i, connection in enumerate(self._connections):
                best[i] = min(best[i], self._ask(connection, seconds / ROUNDS))
        return best

    @staticmethod
    def _ask(connection: Connection, order: object) -> float:
        connection.send(order)
        answer = connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]
