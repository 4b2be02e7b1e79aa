"""The machine: its name, the instruction set in use, and what it can give at most."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

import torch_ext
from benchmarks.cases import Case

SOURCE = Path(__file__).with_name("peak.cpp")
BUILD = Path(__file__).parents[1] / "build"
LARGE = 2**28  # bytes that no cache holds
LARGEST_SHARE = 0.05  # of the processor for other programs; with more, times mean little
COMPILE = ("-std=c++20", "-O3", "-ffp-contract=fast", "-pthread", "-shared", "-fPIC")


def cpu_says(field: str) -> str:
    """The first value of a field of /proc/cpuinfo, or nothing where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith(field)), "")


def compiler_options() -> list[str]:
    """The instruction set of the kernels that run, which TORCH_EXT_ISA may have lowered."""
    level = torch_ext.cpu_implementation()
    if level.startswith("avx512"):
        bf16 = ["-mavx512bf16"] if "avx512_bf16" in cpu_says("flags") else []
        return ["-mavx512f", "-mfma", *bf16]
    return ["-mavx2", "-mfma"] if level.startswith("avx2") else []


def build_peak() -> ctypes.CDLL:
    """Compiles peak.cpp, unless that was done, and loads it.

    Raises:
        RuntimeError: the compiler, $CXX or c++, is missing or refused.
    """
    options = compiler_options()
    library = BUILD / f"peak{''.join(options)}.so"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            new = Path(folder) / "peak.so"
            command = [*os.environ.get("CXX", "c++").split(), *COMPILE, *options]
            try:
                subprocess.run(
                    [*command, "-o", new, SOURCE], capture_output=True, text=True, check=True
                )
            except OSError as error:
                raise RuntimeError(f"cannot compile {SOURCE}: {error}") from error
            except subprocess.CalledProcessError as error:
                raise RuntimeError(f"cannot compile {SOURCE}: {error.stderr}") from error
            new.replace(library)
    return ctypes.CDLL(str(library))


class Speeds(NamedTuple):
    """What the processor does in a second around a measurement, at most."""

    flop: float  # in multiply-adds of the case's dtype
    exponentials: float
    memory: float  # bytes read that no cache holds; 0 where nobody asks
    tensors: float  # bytes read of as many as the case has, which caches may hold


@dataclass
class Peak:
    """What can be measured, and the most that was, by kind of number and count of threads."""

    library: ctypes.CDLL
    best: dict[tuple[str, int], float]  # operations or, for "memory", bytes per second
    costs: dict[str, float]  # of an exponential of numbers of a kind: so many multiply-adds

    @classmethod
    def load(cls) -> Peak:
        """With nothing measured yet."""
        return cls(build_peak(), {}, {})

    def kinds(self) -> list[str]:
        """Numbers with multiply-adds of their own: float32, float64, and bfloat16 on some."""
        kinds = ("float32", "float64", "bfloat16")
        return [kind for kind in kinds if hasattr(self.library, f"{kind}_flop_per_second")]

    def flop_per_second(self, dtype: str, threads: int) -> float:
        """Measured now, in about 30 ms; float16 counts as float32, where it is calculated."""
        kind = dtype if dtype in self.kinds() else "float32"
        function = getattr(self.library, f"{kind}_flop_per_second")
        function.restype = ctypes.c_double
        time.sleep(0.01)  # until torch's threads, which wait in a loop at first, sleep
        return self._keep(
            kind, threads, max(function(threads, ctypes.c_long(500_000)) for _ in range(12))
        )

    def exponentials_per_second(self, dtype: str, threads: int) -> float:
        """Among multiply-adds at their best: polynomials of these, they need the same units.

        What one costs is measured once, in about 100 ms. Weights of 16 bits are float32 too.
        """
        kind = "float64" if dtype == "float64" else "float32"
        if (kind, threads) not in self.best:
            self.flop_per_second(kind, threads)
        if kind not in self.costs:
            function = getattr(self.library, f"{kind}_multiply_adds_per_exponential")
            function.restype = ctypes.c_double
            time.sleep(0.01)
            self.costs[kind] = function(ctypes.c_long(10_000))
        return self.best[kind, threads] / 2 / self.costs[kind]

    def bytes_per_second(self, threads: int, size: float = LARGE) -> float:
        """Of reading `size` bytes again and again, by default so many that no cache holds them."""
        size = max(int(size), 2**20)
        data = torch.ones(size // 4)
        function = self.library.bytes_per_second
        function.restype = ctypes.c_double
        address, rounds = ctypes.c_void_p(data.data_ptr()), ctypes.c_long(-(-(LARGE // 4) // size))
        found = max(function(address, ctypes.c_long(size), threads, rounds) for _ in range(10))
        return self._keep("memory", threads, found) if size == LARGE else found

    def speeds(self, case: Case, work: str, threads: int) -> Speeds:
        """At this moment."""
        return Speeds(
            self.flop_per_second(case.dtype, threads),
            self.exponentials_per_second(case.dtype, threads),
            self.bytes_per_second(threads) if case.has_one_query else 0.0,
            self.bytes_per_second(threads, case.bytes_held(work)),
        )

    def _keep(self, kind: str, threads: int, now: float) -> float:
        self.best[kind, threads] = max(now, self.best.get((kind, threads), 0.0))
        return now


def least_seconds(case: Case, work: str, best: Speeds) -> float:
    """Of a program that only does what the operators cannot do without.

    Multiply-adds and exponentials, which take turns on the same units, or bytes, whichever takes
    longer. Dropout's random numbers are not counted.
    """
    arithmetic = case.flop(work) / best.flop + case.exponentials(work) / best.exponentials
    return max(arithmetic, case.bytes_moved(work) / best.tensors)


@dataclass
class Bystanders:
    """What other programs take of the processor, from this object's making on."""

    ticks: list[int]  # of the whole machine at the start, by kind as in /proc/stat
    own: float  # seconds of this process and of those that it started

    @classmethod
    def watch(cls) -> Bystanders:
        """From now on."""
        return cls(_ticks(), sum(os.times()[:4]))

    def share(self) -> float:
        """0 where this process was alone, 1 where it got nothing."""
        spent = [now - then for now, then in zip(_ticks(), self.ticks, strict=True)]
        idle = spent[3] + spent[4]
        own = (sum(os.times()[:4]) - self.own) * os.sysconf("SC_CLK_TCK")
        return max(0.0, (sum(spent) - idle - own) / max(1, sum(spent)))


def _ticks() -> list[int]:
    """user, nice, system, idle, waiting for files, interrupts of two kinds, taken by the host."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    return [int(count) for count in line.split()[1:9]]


def torch_multiplies_bfloat16() -> bool:
    """Whether torch's matrix products of bfloat16 are faster than its float32 ones."""
    capability = torch.backends.cpu.get_cpu_capability()
    return "avx512_bf16" in cpu_says("flags") and capability.startswith("AVX512")


def level() -> str:
    """What ratios depend on most: the instruction sets in use. Stored ratios are kept by it."""
    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = ", bf16" if torch_multiplies_bfloat16() else ""
    return f"torch_ext {torch_ext.cpu_implementation()}, torch {capability}{bf16}"


def description(threads: int) -> dict[str, str]:
    """What a reader of the results has to know."""
    return {
        "processor": cpu_says("model name") or "unknown processor",
        "threads": str(threads),
        "torch": torch.__version__,
        "instruction sets": level(),
    }
