"""Runs the benchmark: every case against SDPA, other libraries, random cases, lengths.

    make bench                                  # all of it, in minutes, into runs/benchmark
    make bench ARGS=--quick                     # a minute
    make bench ARGS="--only 'cases: decode'"    # a part of it
    make bench ARGS="--only random: --seed 1"   # other random cases

Calls take turns in one process and the minimum of many repeats counts. Ratios above 1 mean that
torch_ext is faster. SDPA is called as a user would call it and picks its own path; "math" is its
path of matmul, softmax, matmul. The share of the peak is that of the multiply-adds which the
processor was measured to do at the same time. Tables are saved as CSV files, with pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import lengths, peers, plots, random_cases, suite, tables
from benchmarks.machine import LARGEST_SHARE, Bystanders, description
from benchmarks.options import new_parser, positive
from benchmarks.suite import Row, Settings, Step

HEADINGS = {
    "machine": "Machine",
    "cases": "Cases",
    "scaling": "One head on all threads",
    "calls": "Cost of a call on tiny tensors",
    "peers": "Forward of other libraries, float32",
    "random": "Random cases: ratio to SDPA",
    "time": "Time against length, one head, D = 64",
    "memory": "Peak memory beyond inputs and results, one head, D = 64",
}
FULL_SECONDS, QUICK_SECONDS = 2.0, 0.15
RESULTS = Path("runs/benchmark")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, each checked."""
    parser = new_parser("make bench", __doc__, "steps whose 'part: name' contains this")
    add = parser.add_argument
    add("--quick", action="store_true", help="a minute: shorter times, fewer random cases, no flex")
    add(
        "--seconds",
        type=positive(float),
        help=f"time for each measurement (default: {FULL_SECONDS}, quick {QUICK_SECONDS})",
    )
    add(
        "--seed",
        type=int,
        default=Settings.seed,
        help="draws the random cases (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="for tables and pictures, in place of those of an earlier run (default: "
        f"{RESULTS}; nowhere with --only)",
    )
    options = parser.parse_args(arguments)
    if not options.out and not options.only:
        options.out = RESULTS
    if options.out and options.out.exists() and not options.out.is_dir():
        parser.error(f"--out: expected a folder, but got the file '{options.out}'")
    return options


def all_steps(settings: Settings) -> list[Step]:
    """Every step, in order of the tables."""
    return [
        *suite.steps(settings),
        *peers.steps(settings),
        *random_cases.steps(settings),
        *lengths.steps(settings),
    ]


def choose(steps: list[Step], text: str) -> list[Step]:
    """Those that --only asks for; leaves with a message where there are none."""
    chosen = [step for step in steps if text in f"{step.part}: {step.name}"]
    if not chosen:
        names = sorted({f"{step.part}: {step.name}" for step in steps if step.part != "random"})
        sys.exit(
            f"--only: expected part of a step's name, but got '{text}'; the steps are\n  "
            + "\n  ".join([*names, "random: ..."])
        )
    return chosen


def measure(steps: list[Step], settings: Settings) -> dict[str, list[Row]]:
    """The tables by part, and the machine's, which knows the best peaks only at the end."""
    found: dict[str, list[Row]] = {}
    with tqdm(steps, unit="step") as bar:
        for step in bar:
            bar.set_description(step.name)
            torch.manual_seed(0)
            found.setdefault(step.part, []).append(step.measure())
    return {"machine": machine_rows(settings), **found}


def machine_rows(settings: Settings) -> list[Row]:
    """What the machine is and what it can give."""
    rows = dict(description(settings.threads))
    rows["seconds for each measurement"] = f"{settings.seconds:g}"
    rows["seed of the random cases"] = str(settings.seed)
    counts = sorted({1, settings.threads})
    for kind in settings.peak.kinds():
        for threads in counts:
            settings.peak.flop_per_second(kind, threads)
            speed = settings.peak.best[kind, threads]
            rows[f"multiply-adds {kind}, threads {threads}"] = f"{speed / 1e9:.0f} GFLOP/s"
    for kind in ("float32", "float64"):
        for threads in counts:
            speed = settings.peak.exponentials_per_second(kind, threads)
            rows[f"exponentials {kind}, threads {threads}"] = f"{speed / 1e9:.1f} G/s"
    for threads in counts:
        settings.peak.bytes_per_second(threads)
        speed = settings.peak.best["memory", threads]
        rows[f"reading memory, threads {threads}"] = f"{speed / 1e9:.0f} GB/s"
    return [{"what": what, "value": value} for what, value in rows.items()]


def save(found: dict[str, list[Row]], folder: Path) -> None:
    """Tables and pictures; nothing of an earlier run is left among them."""
    for part in tables.PARTS:
        (folder / f"{part}.csv").unlink(missing_ok=True)
    for name in plots.PICTURES:
        (folder / name).unlink(missing_ok=True)
    for part, rows in found.items():
        tables.save(folder / f"{part}.csv", rows)
    plots.draw(found, folder)


def main() -> None:
    """Measures, saves, prints."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else FULL_SECONDS)
    settings = Settings(options.threads, seconds, options.quick, seed=options.seed)
    chosen = choose(all_steps(settings), options.only)
    if any(step.part == "peers" for step in chosen):
        for name, reason in peers.absent().items():
            print(f"without {name}: {reason} (requirements-bench.txt)")
    try:
        settings.peak.kinds()
    except RuntimeError as error:
        sys.exit(str(error))
    bystanders = Bystanders.watch()
    found = measure(chosen, settings)
    share = bystanders.share()
    found["machine"].append({"what": "taken by other programs", "value": f"{share:.0%}"})
    for part, rows in found.items():
        print(f"\n## {HEADINGS[part]}\n\n{tables.markdown(rows)}")
    print()
    for line in random_cases.summary(found.get("random", [])) + suite.summary(found):
        print(line)
    if share > LARGEST_SHARE:
        print(f"other programs took {share:.0%} of the processor: these numbers mean little")
    if options.out:
        save(found, options.out)
        print(f"saved in {options.out}")


if __name__ == "__main__":
    main()
