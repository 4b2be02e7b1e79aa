"""Compares the ratios of the cases with stored ones, so that a regression is seen.

    make bench-check                   # leaves with 1 where a ratio fell by more than the tolerance
    make bench-check ARGS=--update     # stores what is measured now instead

ratios.csv, beside this file, has one set of ratios for each combination of instruction sets, those
of torch_ext and those of torch: TORCH_EXT_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 is one of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import suite, tables
from benchmarks.machine import LARGEST_SHARE, Bystanders, level
from benchmarks.options import new_parser, positive
from benchmarks.run import choose
from benchmarks.suite import Row, Settings, Step

STORED = Path(__file__).with_name("ratios.csv")
KEY = ("case", "dtype", "what")
RATIOS = ("ratio to SDPA", "ratio to math")


def key_of(row: Row) -> tuple[str, ...]:
    """What identifies a case."""
    return tuple(row[name] for name in KEY)


def fallen(stored: Row, measured: Row, tolerance: float) -> list[str]:
    """A line for each ratio that is lower than stored by more than `tolerance`, a share of it."""
    lines = []
    for name in RATIOS:
        if not (stored[name] and measured[name]):
            continue
        before, now = float(stored[name]), float(measured[name])
        if now < before * (1 - tolerance):
            lines.append(f"{', '.join(key_of(measured))}: {name} was {before:.2f}, is {now:.2f}")
    return lines


def best_of(first: Row, second: Row) -> Row:
    """The higher of two ratios each."""
    return {
        **first,
        **{n: max(first[n], second[n], key=float) for n in RATIOS if first[n] and second[n]},
    }


def compare(
    steps: list[Step], repeat: list[Step], stored: list[Row], tolerance: float
) -> tuple[list[Row], list[str]]:
    """Measures; what fell is measured again, longer, before it is believed.

    Args:
        steps: what to measure.
        repeat: the same steps with more time.
        stored: ratios for these instruction sets; a step without one is measured only.
        tolerance: share of a ratio by which it may fall. Times of less than a millisecond depend on
            where the process happened to get its memory.

    Returns:
        The rows measured, and a line for each ratio that fell.
    """
    by_key = {key_of(row): row for row in stored}
    rows, lines = [], []
    for step, again in zip(tqdm(steps, unit="case"), repeat, strict=True):
        row = step.measure()
        before = by_key.get(key_of(row))
        if before and fallen(before, row, tolerance):
            row = best_of(row, again.measure())
        if before:
            lines += fallen(before, row, tolerance)
        rows.append(row)
    return rows, lines


def store(rows: list[Row], everything: list[Row], path: Path) -> None:
    """Replaces the ratios of these cases at this level; all others stay."""
    new = [{"instruction sets": level(), **{n: row[n] for n in (*KEY, *RATIOS)}} for row in rows]
    replaced = {(row["instruction sets"], *key_of(row)) for row in new}
    kept = [row for row in everything if (row["instruction sets"], *key_of(row)) not in replaced]
    merged = kept + new
    tables.save(path, sorted(merged, key=lambda row: row["instruction sets"]))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, each checked."""
    parser = new_parser(
        "make bench-check", __doc__, "cases whose name, dtype or work contains this"
    )
    add = parser.add_argument
    add("--update", action="store_true", help="store the ratios measured now")
    add("--seconds", type=positive(float), default=0.4, help="time for each (default: %(default)s)")
    add(
        "--tolerance",
        type=positive(float),
        default=0.25,
        help="share of a ratio by which it may fall (default: %(default)s)",
    )
    add("--stored", type=Path, default=STORED, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not options.tolerance < 1:
        parser.error(f"--tolerance: expected a share below 1, but got {options.tolerance}")
    if not options.update and not options.stored.exists():
        parser.error(f"--stored: expected a table of ratios, but '{options.stored}' is missing")
    return options


def cases(options: argparse.Namespace, seconds: float) -> list[Step]:
    """The steps whose ratios are stored."""
    settings = Settings(options.threads, seconds, quick=True)
    return choose([s for s in suite.steps(settings) if s.part == "cases"], options.only)


def main(arguments: list[str] | None = None) -> int:
    """0 where nothing fell, 1 where something did, 2 where nothing could be compared or stored."""
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    everything = tables.load(options.stored) if options.stored.exists() else []
    stored = [row for row in everything if row["instruction sets"] == level()]
    if not stored and not options.update:
        print(
            f"no ratios are stored for '{level()}', only for "
            f"{sorted({row['instruction sets'] for row in everything})}; --update stores them",
            file=sys.stderr,
        )
        return 2
    bystanders = Bystanders.watch()
    rows, lines = compare(
        cases(options, options.seconds),
        cases(options, 4 * options.seconds),
        [] if options.update else stored,
        options.tolerance,
    )
    share = bystanders.share()
    if share > LARGEST_SHARE:
        print(f"other programs took {share:.0%} of the processor: try again when it is idle")
    if options.update and share <= LARGEST_SHARE:
        store(rows, everything, options.stored)
        print(f"{len(rows)} ratios of '{level()}' are in {options.stored}")
        return 0
    if options.update:
        return 2
    for line in lines:
        print(line)
    print(f"{level()}: {len(lines)} ratios of {len(rows)} cases fell by over {options.tolerance}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
