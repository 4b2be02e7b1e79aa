"""What comes before the measurements: the build, the operators, the tests, compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu import programs
from benchmarks.gpu.programs import ROOT, Timer
from benchmarks.gpu.shares import is_finished, load, outcomes

TREE = ROOT / "build" / "gpu"  # of its own: .venv's torch is another one
PACKAGE = TREE / "site" / "torch_ext"
TOOLS = ("memcheck", "racecheck", "synccheck")
SHARED_OBJECT = "libtorch_ext.so"


@dataclass
class Machine:
    """What the stages work with."""

    device: str  # "cpu" for a dry run
    log: Path
    only: str = ""  # tests, as for pytest -k

    @property
    def is_dry(self) -> bool:
        """Whether sizes are tiny and nothing is built."""
        return self.device == "cpu"

    @property
    def site(self) -> Path:
        """Where programs run, and import torch_ext from."""
        return TREE / "site" if (PACKAGE / SHARED_OBJECT).exists() and not self.is_dry else ROOT

    def run(self, command: list[str | Path], seconds: float, **more: str) -> int | None:
        """A program that imports torch_ext, with more in its environment."""
        environment = {**programs.environment(), **more}
        return programs.run(command, self.log, seconds, cwd=self.site, env=environment)


@dataclass
class Outcome:
    """How a stage ended."""

    verdict: str  # "passed", "failed", "stopped" at its limit, "left out"
    text: str = ""
    lines: list[str] = field(default_factory=list)  # for a list below it
    tests: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def by_status(status: int | None) -> str:
    """The verdict on a program."""
    return "stopped" if status is None else "passed" if status == 0 else "failed"


# ---- Build ---------------------------------------------------------------------------------------


def architecture() -> str:
    """That of this GPU, as CMake calls it: others are not compiled for."""
    major, _ = torch.cuda.get_device_capability()
    return "90a" if major == 9 else "80"


def build(machine: Machine, timer: Timer) -> Outcome:
    """The library for this Python's torch and this GPU, beside a copy of the Python files."""
    if machine.is_dry:
        return Outcome("left out", "a dry run takes the library that is there")
    cmake, nvcc = programs.find("cmake"), programs.find("nvcc")
    if not cmake or not nvcc:
        missing = " and ".join(x for x, path in (("cmake", cmake), ("nvcc", nvcc)) if not path)
        return Outcome(
            "failed",
            f"{missing} not found: not beside Python, in the PATH, in CUDA_HOME, in /usr/local or "
            "in a package of pip's",
        )
    environment = {**os.environ, "CUDACXX": os.environ.get("CUDACXX", nvcc)}
    configure = [cmake, "-S", ROOT, "-B", TREE, f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DTORCH_EXT_OUTPUT_DIR={PACKAGE}", "-DTORCH_EXT_CUDA=ON"]
    configure += [f"-DTORCH_EXT_CUDA_ARCHITECTURES={architecture()}"]
    ninja = programs.find("ninja")
    if ninja:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    jobs = str(os.cpu_count() or 1)
    make = [cmake, "--build", TREE, "--target", "torch_ext", "--parallel", jobs]
    (PACKAGE / SHARED_OBJECT).unlink(missing_ok=True)  # none of an earlier build
    for command in (configure, make):
        status = programs.run(command, machine.log, timer.left, env=environment)
        if status != 0:
            return Outcome(by_status(status), f"{command[1]} of cmake: see {machine.log.name}")
    ignored = shutil.ignore_patterns("*.so", "_built_for.py", "__pycache__")
    shutil.copytree(ROOT / "torch_ext", PACKAGE, ignore=ignored, dirs_exist_ok=True)
    return Outcome("passed", f"sm_{architecture()}, {jobs} at once")


# ---- Operators, compute-sanitizer ----------------------------------------------------------------


def operators(machine: Machine, timer: Timer) -> Outcome:
    """All four beside the CPU's."""
    few = ["--few"] if machine.is_dry else []
    status = machine.run([*_operators(machine), *few], timer.left)
    return Outcome(by_status(status), "forward, backward, tangent, second order beside the CPU's")


def sanitizer(machine: Machine, timer: Timer) -> Outcome:
    """The same under each of its tools."""
    program = programs.find("compute-sanitizer")
    if not program or machine.is_dry:
        return Outcome("left out", "a dry run" if machine.is_dry else "it is not found")
    lines, verdicts = [], []
    for i, tool in enumerate(TOOLS):
        command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        command += [*_operators(machine), "--few"]
        limit = timer.left / (len(TOOLS) - i)
        begin = time.monotonic()
        # With torch's cache the end of a tensor would lie amid memory that is there, too.
        status = machine.run(command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        verdicts.append(by_status(status))
        lines.append(f"{tool}: {verdicts[-1]} after {time.monotonic() - begin:.0f} s")
    worst = next((x for x in ("failed", "stopped") if x in verdicts), "passed")
    return Outcome(worst, "the four operators, one dtype for each size", lines)


def _operators(machine: Machine) -> list[str | Path]:
    module = "benchmarks.gpu.operators"
    return [sys.executable, "-m", module, "--device", machine.device]


# ---- Tests ---------------------------------------------------------------------------------------

TEST_LIMIT = 60  # seconds for one


class Share:
    """Tests of one process; another one goes on behind the test that a process ended with."""

    def __init__(self, machine: Machine, number: int, count: int) -> None:
        self.machine, self.part = machine, f"{number}/{count}"
        self.results = machine.log.with_name(f"share_{number}.jsonl")
        self.results.unlink(missing_ok=True)
        self.known = 0  # lines of the results when the process started
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        device = self.machine.device
        only = f"{device} and ({self.machine.only})" if self.machine.only else device
        command: list[str | Path] = [sys.executable, "-m", "pytest", "-q", "-k", only]
        command += ["-c", ROOT / "pyproject.toml", "-p", "benchmarks.gpu.pytest_shares"]
        command += ["--share", self.part, "--results", self.results, "--limit", str(TEST_LIMIT)]
        command += ["-p", "no:cacheprovider"]
        command += [ROOT / "tests" / ("test_tangent.py" if self.machine.is_dry else "")]
        environment = {**programs.environment(), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        return programs.start(command, self.machine.log, cwd=self.machine.site, env=environment)

    def is_running(self) -> bool:
        """Starts another process where that was ended by a test."""
        if self.process.poll() is None:
            return True
        lines = load(self.results)
        if len(lines) == self.known or is_finished(self.results):
            return False
        self.known = len(lines)
        self.process = self._start()
        return True


def tests(machine: Machine, timer: Timer) -> Outcome:
    """Those of Python that take the device as a parameter, on this one, in several processes."""
    if importlib.util.find_spec("pytest") is None:
        return Outcome("left out", "pytest is not installed")
    count = 1 if machine.is_dry else min(8, os.cpu_count() or 1)
    shares = [Share(machine, i, count) for i in range(count)]
    running = shares
    while timer.left > 0 and running:
        time.sleep(0.1)
        running = [share for share in running if share.is_running()]
    cut = timer.left <= 0
    unfinished = 0
    found = []
    for share in shares:
        programs.end(share.process)
        unfinished += not is_finished(share.results)
        found += outcomes(share.results, cut)
        share.results.unlink(missing_ok=True)
    return _judged(found, unfinished, cut)


def _judged(found: list[dict[str, str]], unfinished: int, cut: bool) -> Outcome:
    counts = Counter(test["outcome"] for test in found)
    text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none"
    verdict = "failed" if counts["failed"] or counts["stopped"] or not found else "passed"
    if unfinished:
        text += f"; {unfinished} processes did not come to their end"
        verdict = "stopped" if cut and verdict == "passed" else "failed"
    bad = [test for test in found if test["outcome"] in ("failed", "stopped")]
    lines = [f"{x['outcome']}: {x['test']}: {_one_line(x['message'])}" for x in bad]
    return Outcome(verdict, text, lines, found)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


STAGES: dict[str, Callable[[Machine, Timer], Outcome]] = {
    "build": build,
    "operators": operators,
    "tests": tests,
    "sanitizer": sanitizer,
}
