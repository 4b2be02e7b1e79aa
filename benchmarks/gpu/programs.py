"""Programs that the stages need, and how they are run: with a limit, their output in one log."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CUDA_HOMES = ("CUDA_HOME", "CUDA_PATH")


def find(name: str) -> str | None:
    """A program: beside Python, in the PATH, in a CUDA toolkit, in packages that pip installed."""
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    folders.append(os.environ.get("PATH", os.defpath))
    toolkits = [Path(os.environ[home]) for home in CUDA_HOMES if home in os.environ]
    toolkits += sorted(Path("/usr/local").glob("cuda*"))
    toolkits += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*"))
    for toolkit in toolkits:
        folders += [str(toolkit / "bin"), str(toolkit / "compute-sanitizer")]
    return shutil.which(name, path=os.pathsep.join(folders))


def environment() -> dict[str, str]:
    """For programs that import torch_ext from where they run, and the rest from here."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


_running: list[subprocess.Popen[str]] = []


def start(command: Sequence[str | Path], log: Path, **options: Any) -> subprocess.Popen[str]:
    """Starts it in a process group of its own; what it prints is added to the log."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n")
        file.flush()
        options = {"stdout": file, "stdin": subprocess.DEVNULL, **options}
        process = subprocess.Popen(
            list(map(str, command)), stderr=file, text=True, preexec_fn=os.setpgrp, **options
        )
    _running.append(process)
    return process


@atexit.register
def end_all() -> None:
    """Whatever is still running when this program ends."""
    for process in list(_running):
        end(process)


def leave_when_told() -> None:
    """Lets SIGTERM end this program as an exception does, with all that it started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def run(command: Sequence[str | Path], log: Path, seconds: float, **options: Any) -> int | None:
    """Its exit status, or None where it was ended because it took too long."""
    process = start(command, log, **options)
    try:
        return process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Ends it with what it started, such as the compilers of a build."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process in _running:
        _running.remove(process)


class Timer:
    """Seconds until a moment that is fixed when this is made."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Below 0 when it is over."""
        return self.end - time.monotonic()
