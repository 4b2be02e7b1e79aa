"""Builds, tests and measures on a machine with a GPU, with the Python and torch that it has.

    make gpu                                     # all of it, in ten minutes, into runs/gpu
    make gpu ARGS="--only 'long, D 128'"         # of the measurements a part
    make gpu ARGS="--stages build,measure"
    make gpu ARGS=--dry-run                      # on the CPU, tiny: does the machinery run?

No network is used and nothing is installed. The library is built in build/gpu for this GPU alone.
What fails is written into report.md, and the rest goes on; a step that hangs is ended. Everything
is written as it is found, so that what is ended early leaves what it has.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import cases, control, programs
from benchmarks.gpu.programs import Timer
from benchmarks.gpu.report import PARTS, PICTURE, Report, describe
from benchmarks.gpu.stages import STAGES, Machine, Outcome
from benchmarks.options import new_parser, positive

RESULTS = Path("runs/gpu")
MINUTES = 9.5
SECONDS = 1.0  # for a measurement
LOG = "log.txt"
FOR_PICTURES = 5.0
# The stages in order, and the most seconds for each that is not the last one.
MOST = {"build": 240.0, "operators": 40.0, "tests": 120.0, "measure": 270.0, "sanitizer": 240.0}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, each checked."""
    parser = new_parser("make gpu", __doc__, "measurements whose name contains this")
    add = parser.add_argument
    add("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    add("--minutes", type=positive(float), default=MINUTES, help="in all (default: %(default)s)")
    add("--seconds", type=positive(float), help=f"for a measurement (default: {SECONDS})")
    add("--stages", default=",".join(MOST), help="which of them (default: %(default)s)")
    add("--tests", default="", metavar="TEXT", help="which of the tests, as for pytest -k")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.stages = options.stages.split(",")
    unknown = set(options.stages) - set(MOST)
    if unknown:
        parser.error(f"--stages: expected some of {', '.join(MOST)}, but got {sorted(unknown)}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out: expected a folder, but got the file '{options.out}'")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} of {sys.executable} sees no GPU; --dry-run needs none"
        )
    options.names = [step.name for step in cases.steps() if options.only in step.name]
    if not options.names:
        names = "\n  ".join(step.name for step in cases.steps())
        parser.error(f"--only: no measurement has '{options.only}' in its name:\n  {names}")
    return options


def prepare(folder: Path) -> Path:
    """Makes the folder, without the results of an earlier run; returns the log."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{part}.csv" for part in PARTS), PICTURE, LOG, "report.md"):
        (folder / name).unlink(missing_ok=True)
    return folder.resolve() / LOG


def run_stage(name: str, machine: Machine, timer: Timer) -> Outcome:
    """One of them, within its time; whatever it raises is a failure."""
    begin = time.monotonic()
    try:
        outcome = STAGES[name](machine, timer)
    except Exception as error:
        outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    outcome.seconds = time.monotonic() - begin
    return outcome


Answers = Iterator[tuple[str, dict[str, Any]]]


def progress(answers: Answers, count: int) -> Answers:
    """A bar if there is tqdm, or a line for each."""
    try:
        from tqdm import tqdm
    except ImportError:
        for i, (step, answer) in enumerate(answers):
            print(f"[{i + 1}/{count}] {step}", flush=True)
            yield step, answer
        return
    with tqdm(answers, total=count, unit="step", mininterval=1.0) as bar:
        for step, answer in bar:
            bar.set_description(step, refresh=False)
            yield step, answer


def measure(options: argparse.Namespace, machine: Machine, timer: Timer, report: Report) -> Outcome:
    """All steps for which there is time."""
    begin, count = time.monotonic(), 0
    seconds = options.seconds or (0.01 if machine.is_dry else SECONDS)
    arguments = ["--device", machine.device, "--seconds", str(seconds)]
    where = {"cwd": machine.site, "env": programs.environment()}
    answers = control.measure(options.names, arguments, timer, machine.log, **where)
    for step, answer in progress(answers, len(options.names)):
        count += 1
        if "row" in answer:
            report.add_row(step, answer["row"])
        else:
            report.add_failure(step, answer["error"])
    text = f"{count} of {len(options.names)} steps, {len(report.failed)} failed"
    done = "passed" if count == len(options.names) else "stopped"
    return Outcome("failed" if report.failed else done, text, seconds=time.monotonic() - begin)


def main(arguments: list[str] | None = None) -> int:
    """0 where everything that was asked for passed."""
    options = parse_options(arguments)
    programs.leave_when_told()
    timer = Timer(options.minutes * 60 - FOR_PICTURES)
    machine = Machine("cpu" if options.dry_run else "cuda", prepare(options.out), options.tests)
    report = Report(options.out, {"machine": describe(machine.device)})
    report.save()
    verdicts = []
    for name in options.stages:
        print(f"{name} …", flush=True)
        most = timer.left if name == options.stages[-1] else min(MOST[name], timer.left)
        if name == "measure":
            outcome = measure(options, machine, Timer(most), report)
        else:
            outcome = run_stage(name, machine, Timer(most))
        print(f"{name}: {outcome.verdict}: {outcome.text} ({outcome.seconds:.0f} s)", flush=True)
        report.add_stage(name, outcome)
        verdicts.append(outcome.verdict)
    report.draw()
    print(f"saved in {options.out}: read report.md first, {LOG} says more")
    return 1 if {"failed", "stopped"} & set(verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
