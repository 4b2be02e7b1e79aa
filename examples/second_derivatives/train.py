"""Trains with a gradient penalty and measures curvature, by torch_ext and by PyTorch's math path.

    python examples/second_derivatives/train.py

The same script runs twice, each time in a fresh process: with torch_ext.attention, and with
scaled_dot_product_attention on its math path, the only one of PyTorch's that can be differentiated
twice. The results must agree, and the critic must find the distance between the two kinds of
signals, which is known, and the wave that makes it; the exit status is 1 otherwise, and 2 if an
option was wrong. A picture goes into the folder --out.
"""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt

from critic import ATTENTIONS, Report, Settings, curvature, train

Task = Callable[..., Report]

LARGEST = 2**31 - 1  # of a number, so that none overflows
ABOVE_0 = (
    *("length", "width", "heads", "batch", "steps", "learning_rate", "penalty", "distance"),
    *("products", "threads"),
)
COSTS = {"seconds": "seconds", "peak MiB": "peak_mib"}
AGREE = 1e-3  # largest relative difference of derivatives at the same weights


def parse_options() -> argparse.Namespace:
    """The options, each checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/second_derivatives"), help="folder for the picture")
    add("--length", type=int, default=1024, help="samples in a signal")
    add("--width", type=int, default=32, help="size of the vector that stands for a sample")
    add("--heads", type=int, default=4, help="attention heads")
    add("--batch", type=int, default=2, help="signals of each kind in a step")
    add("--steps", type=int, default=100, help="optimiser steps")
    add("--learning-rate", type=float, default=2e-2, help="at its highest")
    add("--penalty", type=float, default=10.0, help="weight of the gradient penalty")
    add("--distance", type=float, default=4.0, help="between the two kinds of signals")
    add("--products", type=int, default=8, help="Hessian-vector products")
    add("--least", type=float, default=0.9, help="cosine of the critic's gradient with the wave")
    add("--seed", type=int, default=0, help="of weights and signals")
    add("--threads", type=int, default=torch.get_num_threads(), help="processor cores to use")
    options = parser.parse_args()
    check(parser, options)
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Leaves with status 2 and a message that names the option where a value is not possible."""

    def need(name: str, possible: bool, what: str) -> None:
        if not possible:
            value = getattr(options, name)
            parser.error(f"--{name.replace('_', '-')} must be {what}, but got {value!r}")

    for name in ABOVE_0:
        need(name, 0 < getattr(options, name) <= LARGEST, "above 0 and below 2^31")
    need("seed", 0 <= options.seed <= LARGEST, "at least 0 and below 2^31")
    need("width", options.width % 2 == 0, "even: places are told by pairs of numbers")
    need("width", options.width % options.heads == 0, f"a multiple of {options.heads}, --heads")
    need("steps", options.steps >= 10, "at least 10: the last tenth counts")
    need("length", options.length >= 32, "at least 32, to hold a wave")
    need("least", 0 <= options.least <= 1, "at least 0 and at most 1")


def memory(name: str) -> float:
    """MiB that this process holds (VmRSS), or held at its worst moment (VmHWM)."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measured(task: Task, threads: int, settings: Settings, *rest: object) -> Report:
    """What the task reports, with its time and peak memory. A small run before loads the code."""
    torch.set_num_threads(threads)
    small = replace(settings, length=32, steps=10, products=1, show_progress=False)
    task(small, *rest)
    Path("/proc/self/clear_refs").write_text("5")  # the worst moment is from now on
    held, start = memory("VmRSS"), time.perf_counter()
    report = task(settings, *rest)
    report.seconds = time.perf_counter() - start
    report.peak_mib = memory("VmHWM") - held
    return report


def in_fresh_process(*task: object) -> Report:
    """Calls `measured` where nothing ran before, so that the peak memory is the task's own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, *task).result()


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Norm of the difference over the norm of the second."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def estimate(report: Report) -> float:
    """The distance that the critic found, from the last tenth of the steps.

    The penalty lets the gradient grow a little above 1, and the difference in proportion.
    """
    last = len(report.curves["norm"]) // 10
    return sum(report.curves["difference"][-last:]) / sum(report.curves["norm"][-last:])


def cosine(report: Report, wave: np.ndarray) -> float:
    """Of the angle between the critic's gradient and the wave."""
    gradient = np.array(report.curves["gradient"])
    return float(gradient @ wave / np.linalg.norm(gradient) / np.linalg.norm(wave))


def compare(tasks: dict[str, dict[str, Report]]) -> bool:
    """Prints what the tasks cost each attention; whether the derivatives agree."""
    agree = True
    for task, runs in tasks.items():
        ours, theirs = (runs[name] for name in ATTENTIONS)
        difference = relative_difference(ours.derivative, theirs.derivative)
        agree = agree and difference <= AGREE
        print(f"{task}: relative difference of the derivatives at equal weights {difference:.1e}")
        for label, cost in COSTS.items():
            a, b = getattr(ours, cost), getattr(theirs, cost)
            print(f"  {label}: torch_ext {a:.1f}, SDPA math {b:.1f}, ratio {b / max(a, 0.1):.1f}")
    return agree


def draw(tasks: dict[str, dict[str, Report]], settings: Settings, path: Path) -> None:
    """The distance found by step, the critic's gradient beside the wave, time and memory."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    (curves, shape), costs = grid
    wave = settings.wave().numpy() / settings.distance
    shape.plot(wave, color="0.7", linewidth=4, label="hidden wave, norm 1")
    styles = dict(zip(ATTENTIONS, (("tab:blue", "-"), ("tab:orange", "--")), strict=True))
    for name, (colour, line) in styles.items():
        report = tasks["training"][name]
        curves.plot(report.curves["difference"], line, color=colour, label=f"difference, {name}")
        shape.plot(report.curves["gradient"], line, color=colour, linewidth=1, label=name)
    curves.axhline(settings.distance, color="tab:red", linestyle=":", label="distance")
    curves.set(xlabel="step", ylabel="mean of waves - mean of noise", title="What the critic finds")
    shape.set(xlabel="sample of the signal", title="Gradient of the trained critic")
    for axes, (label, cost) in zip(costs, COSTS.items(), strict=True):
        for i, (name, (colour, _)) in enumerate(styles.items()):
            heights = [getattr(runs[name], cost) for runs in tasks.values()]
            bars = axes.bar(np.arange(len(tasks)) + 0.4 * i, heights, 0.4, color=colour, label=name)
            axes.bar_label(bars, fmt="%.1f")
        axes.set_xticks(np.arange(len(tasks)) + 0.2, list(tasks))
        axes.margins(y=0.12)  # room for the numbers
        axes.set(ylabel=label, title=f"Attention over {settings.length} samples")
    for axes in grid.flat:
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Trains, measures, compares, draws; 0 if all results are as they should be."""
    options = parse_options()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"cannot make the folder --out: {error}", file=sys.stderr)
        return 2
    names = [field.name for field in fields(Settings) if hasattr(options, field.name)]
    settings = Settings(**{name: getattr(options, name) for name in names})

    def run(task: Task, *rest: object) -> dict[str, Report]:
        return {
            name: in_fresh_process(task, options.threads, settings, name, *rest)
            for name in ATTENTIONS
        }

    trained = run(train)
    curved = run(curvature, trained["torch_ext"].weights)
    tasks = {"training": trained, "curvature": curved}

    good = compare(tasks)
    for name, report in trained.items():
        found, angle = estimate(report), cosine(report, settings.wave().numpy())
        print(
            f"{name}: distance {found:.3f} (known: {settings.distance:.3f}), "
            f"cosine of the critic's gradient with the wave {angle:.3f}, "
            f"largest curvature {curved[name].curves['curvature'][-1]:.4g}"
        )
        near = abs(found / settings.distance - 1) <= 1 - options.least
        good = good and near and angle >= options.least
    draw(tasks, settings, options.out / "derivatives.png")
    print(f"saved derivatives.png in {options.out}")
    if good:
        return 0
    print("not all results are as they should be: train longer", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
