"""The machine: its name, the instruction set in use, and what it can give at most."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import torch_ext

SOURCE = Path(__file__).with_name("peak.cpp")
BUILD = Path(__file__).parents[1] / "build"
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
        RuntimeError: the compiler, $CXX or c++, refused.
    """
    options = compiler_options()
    library = BUILD / f"peak{''.join(options)}.so"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            new = Path(folder) / "peak.so"
            command = [*os.environ.get("CXX", "c++").split(), *COMPILE, *options]
            result = subprocess.run(
                [*command, "-o", new, SOURCE], capture_output=True, text=True, check=False
            )
            if result.returncode:
                raise RuntimeError(f"cannot compile {SOURCE}: {result.stderr}")
            new.replace(library)
    return ctypes.CDLL(str(library))


@dataclass
class Peak:
    """What can be measured, and the most that was, by kind of number and count of threads."""

    library: ctypes.CDLL
    best: dict[tuple[str, int], float]  # operations per second

    @classmethod
    def load(cls) -> Peak:
        """With nothing measured yet."""
        return cls(build_peak(), {})

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
        now: float = max(function(threads, ctypes.c_long(500_000)) for _ in range(12))
        self.best[kind, threads] = max(now, self.best.get((kind, threads), 0.0))
        return now

    def bytes_per_second(self, threads: int) -> float:
        """Of reading 256 MiB, which no cache holds."""
        data = torch.ones(2**26)
        function = self.library.bytes_per_second
        function.restype = ctypes.c_double
        address, size = ctypes.c_void_p(data.data_ptr()), ctypes.c_long(2**28)
        now: float = max(function(address, size, threads) for _ in range(10))
        return now


def level() -> str:
    """What ratios depend on most: the instruction sets in use. Stored ratios are kept by it."""
    bf16 = ", bf16" if "avx512_bf16" in cpu_says("flags") else ""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch_ext {torch_ext.cpu_implementation()}, torch {capability}{bf16}"


def description(threads: int) -> dict[str, str]:
    """What a reader of the results has to know."""
    return {
        "processor": cpu_says("model name") or "unknown processor",
        "threads": str(threads),
        "torch": torch.__version__,
        "instruction sets": level(),
    }
