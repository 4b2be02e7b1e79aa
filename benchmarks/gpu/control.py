"""Has a worker measure the steps, and starts another one where a step breaks or blocks it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.gpu import programs
from benchmarks.gpu.programs import Timer

START = 60.0  # seconds for Python, torch and the device
LIMITS = {"cases": 45.0, "flex": 120.0, "calls": 20.0}  # for a step


class Worker:
    """A process of worker.py."""

    def __init__(self, options: list[str], log: Path, **more: object) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.worker", *options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = programs.start(command, log, **pipes, **more)
        self.answers: queue.Queue[str] = queue.Queue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def measure(self, step: str, seconds: float) -> dict[str, Any]:
        """The answer; an error where it takes too long or the process ends."""
        assert self.process.stdin
        try:
            self.process.stdin.write(step + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            return {"error": f"stopped after {seconds:.0f} s", "usable": False}
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        status = self.process.wait()
        return {"error": f"the process ended with status {status}", "usable": False}

    def close(self) -> None:
        """Ends the process."""
        programs.end(self.process)


def measure(
    steps: list[str], options: list[str], timer: Timer, log: Path, **more: object
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The steps with their answers, as long as there is time; the last ones may be missing."""
    worker: Worker | None = None
    try:
        for step in steps:
            if timer.left <= 1:
                return
            limit = LIMITS[step.partition(":")[0]]
            if worker is None:
                worker, limit = Worker(options, log, **more), limit + START
            answer = worker.measure(step, min(limit, timer.left))
            if "error" in answer and not answer["usable"]:
                worker.close()
                worker = None
            yield step, answer
    finally:
        if worker:
            worker.close()
