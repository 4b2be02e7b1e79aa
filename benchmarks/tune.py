"""Finds the numbers of csrc/cpu/choices.h again on this machine, and draws what was tried.

    make tune                                 # all of them, in minutes, into runs/tuning
    make tune ARGS=--quick                    # a minute or two
    make tune ARGS="--only tile"              # a part of them

Each value runs in a process of its own and all of them take turns; the minimum of many repeats
counts. The gain of a value is what its times are below those of the default, in the geometric mean
over the cases that it concerns. A default is kept unless a value gains more than --margin. Another
number takes another order of sums: results change in their last bits.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks import plots, tables
from benchmarks.machine import LARGEST_SHARE, Bystanders, cpu_says, level
from benchmarks.options import new_parser, positive
from benchmarks.tables import Row
from benchmarks.tuning import HEADER, TRIALS, Trial, Workers, defaults

FULL_SECONDS, QUICK_SECONDS = 1.0, 0.08
RESULTS = Path("runs/tuning")


@dataclass(frozen=True)
class Tried:
    """A trial with what was measured.

    times: seconds, (cases, values).
    """

    trial: Trial
    default: int
    times: list[list[float]]

    def relative(self) -> list[list[float]]:
        """Times divided by those of the default, (cases, values)."""
        at = self.trial.values.index(self.default)
        return [[time / times[at] for time in times] for times in self.times]

    def gains(self) -> list[float]:
        """Share of the default's time that each value saves, in the geometric mean of the cases."""
        logs = [[math.log(x) for x in times] for times in self.relative()]
        return [-math.expm1(math.fsum(x) / len(x)) for x in zip(*logs, strict=True)]

    def best(self, margin: float) -> int:
        """The value that gains most if that is more than `margin`, else the default."""
        gain, value = max(zip(self.gains(), self.trial.values, strict=True))
        return value if gain > margin else self.default

    def rows(self) -> list[Row]:
        """One for each case and value."""
        return [
            {
                "choice": self.trial.choice,
                "default": str(self.default),
                "value": str(value),
                "case": case.name,
                "dtype": case.dtype,
                "what": work,
                "ms": f"{1e3 * time:.4f}",
                "time by the default's": f"{relative:.4f}",
            }
            for (case, work), times, relatives in zip(
                self.trial.cases, self.times, self.relative(), strict=True
            )
            for value, time, relative in zip(self.trial.values, times, relatives, strict=True)
        ]

    def summary(self, margin: float) -> Row:
        """The default, the best of the values, and what to do."""
        gain, best = max(zip(self.gains(), self.trial.values, strict=True))
        column = [times[self.trial.values.index(best)] for times in self.relative()]
        kept = self.best(margin) == self.default
        return {
            "choice": self.trial.choice,
            "tried": ", ".join(str(value) for value in self.trial.values),
            "default": str(self.default),
            "best": str(best),
            "gain": f"{gain:.1%}",
            "of one case": f"{1 - max(column):+.1%} to {1 - min(column):+.1%}",
            "verdict": "keep" if kept else f"take {best}",
        }


def measure(trials: list[Trial], seconds: float, threads: int) -> tuple[list[Tried], float]:
    """Times all values of all trials; the processor seconds of the workers come second."""
    numbers, tried, spent = defaults(), [], 0.0
    with tqdm(total=sum(len(trial.cases) for trial in trials), unit="case") as bar:
        for trial in trials:
            bar.set_description(trial.choice)
            times = []
            with Workers(trial.choice, trial.values, threads) as workers:
                for case, work in trial.cases:
                    times.append(workers.times(case, work, seconds))
                    bar.update()
            spent += workers.seconds
            tried.append(Tried(trial, numbers[trial.choice], times))
    return tried, spent


def advice(tried: list[Tried], margin: float) -> list[str]:
    """A line for each number that should be another, as it is to stand in choices.h."""
    return [
        f"{HEADER.relative_to(HEADER.parents[2])}: int64_t {x.trial.choice} = {x.best(margin)};"
        f"  (was {x.default})"
        for x in tried
        if x.best(margin) != x.default
    ]


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, each checked."""
    parser = new_parser("make tune", __doc__, "choices whose name contains this")
    add = parser.add_argument
    add("--quick", action="store_true", help="a minute or two: shorter times")
    add(
        "--seconds",
        type=positive(float),
        help=f"time for each value and case (default: {FULL_SECONDS}, quick {QUICK_SECONDS})",
    )
    add(
        "--margin",
        type=positive(float),
        default=0.03,
        help="share of the time that a value must save to be proposed (default: %(default)s)",
    )
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.trials = [trial for trial in TRIALS if options.only in trial.choice]
    if not options.trials:
        names = ", ".join(trial.choice for trial in TRIALS)
        parser.error(f"--only: expected part of one of {names}, but got '{options.only}'")
    if not options.margin < 1:
        parser.error(f"--margin: expected a share below 1, but got {options.margin}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out: expected a folder, but got the file '{options.out}'")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measures, saves, prints."""
    options = parse_options(arguments)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else FULL_SECONDS)
    bystanders = Bystanders.watch()
    tried, spent = measure(options.trials, seconds, options.threads)
    bystanders.own -= spent  # that of the workers is ours
    share = bystanders.share()
    print(f"\n{cpu_says('model name')}, {level()}, threads {options.threads}\n")
    print(tables.markdown([x.summary(options.margin) for x in tried]))
    if share > LARGEST_SHARE:
        print(f"\nother programs took {share:.0%} of the processor: these numbers mean little")
    else:
        lines = advice(tried, options.margin)
        print("\n" + ("\n".join(lines) if lines else "every default is kept"))
    rows = [row for x in tried for row in x.rows()]
    tables.save(options.out / "tuning.csv", rows)
    plots.draw_tuning(rows, options.out / "tuning.png")
    print(f"saved in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
