"""Pictures of the tables: ratio by case, random cases, time and memory against length, tuning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

Row = dict[str, str]

PICTURES = ("ratios.png", "random.png", "lengths.png")
COLOURS = {"forward": "tab:blue", "backward": "tab:orange"}
OTHER = "tab:green"
SMALL: dict[str, Any] = {"fontsize": 7, "va": "center"}
MARKERS = {
    "naive": "x",
    "flex_attention": "d",
    "onnxruntime MHA": "v",
    "onnxruntime": "^",
    "OpenVINO": "s",
}
LINES = {"torch_ext": ("tab:blue", "o"), "SDPA": ("tab:orange", "s"), "math": ("0.5", "^")}


def draw(found: dict[str, list[Row]], folder: Path) -> None:
    """Draws what there are tables for."""
    if "cases" in found:
        _save(ratios(found["cases"], found.get("peers", [])), folder / "ratios.png")
    if "random" in found:
        _save(random_ratios(found["random"]), folder / "random.png")
    if "time" in found or "memory" in found:
        figure = lengths(found.get("time", []), found.get("memory", []))
        _save(figure, folder / "lengths.png")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


def ratios(cases: list[Row], peers: list[Row]) -> Figure:
    """A bar for each case from 1 to SDPA's time by ours; the math path's where SDPA cannot."""
    figure, axes = plt.subplots(figsize=(8.5, 0.21 * len(cases) + 1.5), layout="constrained")
    labels = []
    for y, row in enumerate(cases):
        value = float(row["ratio to SDPA"] or row["ratio to math"])
        axes.barh(y, value - 1, left=1, height=0.75, color=COLOURS.get(row["what"], OTHER))
        axes.text(1.01, y, f"{value:.2f}", transform=axes.get_yaxis_transform(), **SMALL)
        against = "" if row["ratio to SDPA"] else " (math)"
        labels.append(f"{row['case']}, {row['dtype']}, {row['what']}{against}")
    for colour, name in zip((*COLOURS.values(), OTHER), (*COLOURS, "whole"), strict=True):
        axes.barh(0, 0, color=colour, label=name)
    _marks(axes, cases, peers)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set(xscale="log", ylim=(len(cases) - 0.4, -0.6))
    axes.set_xlabel("time of SDPA (bars) and of others (marks), divided by torch_ext's")
    _plain_ticks(axes.xaxis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _marks(axes: Axes, cases: list[Row], peers: list[Row]) -> None:
    """The ratio aimed at, and other libraries where they were measured."""
    aims = [float(row["target"].split(",")[0].removeprefix("math ")) for row in cases]
    axes.plot(aims, range(len(aims)), "|", color="tab:red", ms=9, mew=2, label="target")
    by_name = {row["case"]: row for row in peers}
    for name, marker in MARKERS.items():
        points = [
            (float(by_name[row["case"]][f"ratio to {name}"]), y)
            for y, row in enumerate(cases)
            if (row["dtype"], row["what"]) == ("float32", "forward")
            and by_name.get(row["case"], {}).get(f"ratio to {name}")
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color="black", ms=4, label=name)


def _plain_ticks(axis: Axis) -> None:
    axis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 5, 10, 20, 50]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def random_ratios(rows: list[Row]) -> Figure:
    """All ratios, sorted: the whole curve is to be above 1."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for work, colour in COLOURS.items():
        values = sorted(float(row[work]) for row in rows if row[work])
        if values:
            shares = [100 * (i + 0.5) / len(values) for i in range(len(values))]
            axes.plot(shares, values, ".", color=colour, label=f"{work}, {len(values)} cases")
    axes.axhline(1, color="black", linewidth=1)
    axes.set(yscale="log", xlabel="random cases, % of them", ylabel="SDPA's time / torch_ext's")
    _plain_ticks(axes.yaxis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    return figure


def lengths(times: list[Row], memory: list[Row]) -> Figure:
    """Forward and backward against length: milliseconds on the left, MiB on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    _curves(left, times, "ms", power=2)
    left.set(ylabel="ms", title="time, forward + backward")
    _curves(right, memory, "MiB", power=1)
    right.set(ylabel="MiB", title="memory beyond inputs and results")
    return figure


def _curves(axes: Axes, rows: list[Row], unit: str, power: int) -> None:
    """One curve for each attention that the rows know, and a guide N^power through ours."""
    rows = [row for row in rows if row["what"] == "forward + backward"]
    if not rows:
        return
    for name, (colour, marker) in LINES.items():
        points = [
            (int(row["length"]), float(row[f"{name} {unit}"]))
            for row in rows
            if row.get(f"{name} {unit}")
        ]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4, label=name)
        if name == "torch_ext":
            n, value = points[-1]
            guide = [value * (m / n) ** power for m, _ in points]
            label = "∝ N²" if power == 2 else "∝ N"
            axes.plot([m for m, _ in points], guide, ":", color="black", label=label)
    axes.set(xscale="log", yscale="log", xlabel="N = M")
    axes.set_xticks([int(row["length"]) for row in rows], [row["length"] for row in rows])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)


GPU_MARKERS = {
    "cuDNN": "s",
    "flash": "^",
    "efficient": "d",
    "math": "x",
    "flex_attention": "+",
}


def draw_gpu(rows: list[Row], path: Path) -> None:
    """Draws and saves the cases of `make gpu`."""
    if rows:
        _save(gpu_cases(rows), path)


def gpu_cases(rows: list[Row]) -> Figure:
    """TFLOP/s on the left, a bar for ours, grey what a matmul reached; ratios on the right."""
    size = (10, 0.19 * len(rows) + 1.5)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)
    for y, row in enumerate(rows):
        if row["TFLOP/s"]:
            _gpu_speed(left, y, row)
        for name, marker in GPU_MARKERS.items():
            if row[f"ratio to {name}"]:
                right.plot(float(row[f"ratio to {name}"]), y, marker, color="black", ms=4)
    right.axvline(1, color="black", linewidth=1)
    left.set(xlabel="TFLOP/s; grey: a large matmul", xlim=(0, None))
    right.set(xscale="log", xlabel="time by torch_ext's")
    _plain_ticks(right.xaxis)
    labels = [f"{row['case']}, {row['dtype']}, {row['what']}" for row in rows]
    left.set_yticks(range(len(labels)), labels, fontsize=7)
    left.set_ylim(len(rows) - 0.4, -0.6)
    for name, marker in GPU_MARKERS.items():
        right.plot([], [], marker, color="black", ms=4, label=name)
    figure.legend(fontsize=7, loc="outside lower center", ncols=len(GPU_MARKERS))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _gpu_speed(axes: Axes, y: int, row: Row) -> None:
    speed, ms = float(row["TFLOP/s"]), float(row["ms"])
    axes.barh(y, speed, height=0.75, color=COLOURS.get(row["what"], OTHER))
    share = float(row["share of matmul"].rstrip("%")) / 100
    if share:
        axes.plot([speed / share] * 2, [y - 0.45, y + 0.45], color="0.6", linewidth=2)
    for name, marker in GPU_MARKERS.items():
        if row[f"{name} ms"]:
            axes.plot(speed * ms / float(row[f"{name} ms"]), y, marker, color="black", ms=4)


def draw_tuning(rows: list[Row], path: Path) -> None:
    """Draws and saves what `make tune` tried."""
    _save(tuning(rows), path)


def tuning(rows: list[Row]) -> Figure:
    """For each choice the time against its value, one curve for each case; the default is 1."""
    choices = list(dict.fromkeys(row["choice"] for row in rows))
    columns = min(3, len(choices))
    shape = (math.ceil(len(choices) / columns), columns)
    figure, axes = plt.subplots(
        *shape, figsize=(4 * shape[1], 4 * shape[0]), layout="constrained", squeeze=False
    )
    for axis, choice in zip(axes.flat, choices, strict=False):
        _tuning_curves(axis, [row for row in rows if row["choice"] == choice])
        axis.set_title(choice, fontsize=9)
    for axis in axes.flat[len(choices) :]:
        axis.remove()
    figure.supylabel("time, divided by that with the default")
    return figure


def _tuning_curves(axes: Axes, rows: list[Row]) -> None:
    values = list(dict.fromkeys(row["value"] for row in rows))
    curves: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        key = (row["case"], row["dtype"], row["what"])
        curves.setdefault(key, []).append(float(row["time by the default's"]))
    names = list(dict.fromkeys(key[:2] for key in curves))
    for (case, dtype, work), times in curves.items():
        axes.plot(
            times,
            "o-" if work == "forward" else "s--",
            color=plt.get_cmap("tab20")(names.index((case, dtype)) % 20),
            linewidth=1,
            ms=3,
            label=f"{case}{'' if dtype == 'float32' else ', ' + dtype}, {work}",
        )
    axes.axhline(1, color="black", linewidth=1)
    axes.axvline(values.index(rows[0]["default"]), color="0.7", linewidth=4, zorder=0)
    axes.set_xticks(range(len(values)), values, fontsize=8)
    # Of what is far off, only that it is.
    smallest, largest = (f(f(times) for times in curves.values()) for f in (min, max))
    axes.set_ylim(min(smallest * 0.99, 0.95), min(max(largest * 1.01, 1.05), 1.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=5.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
