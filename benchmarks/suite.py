"""Steps of the benchmark on torch_ext and SDPA: the cases, one head's scaling, the cost of a call.

A step measures one row of a table; its part says which table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F

import torch_ext
from benchmarks.cases import CASES, Case, Target
from benchmarks.machine import Peak, Speeds, least_seconds, torch_multiplies_bfloat16
from benchmarks.measure import fastest
from benchmarks.work import ATTENTIONS, LAYERS, WORK, training_steps

Row = dict[str, str]


@dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    threads: int
    seconds: float  # for each measurement
    quick: bool
    device: str = "cpu"
    seed: int = 20250131  # of the random cases

    @cached_property
    def peak(self) -> Peak:
        """Of this run."""
        return Peak.load()


@dataclass(frozen=True)
class Step:
    """One row: `part` names its table, `name` is what --only searches."""

    part: str
    name: str
    measure: Callable[[], Row]


def describe(target: Target) -> str:
    """As text, such as "1.3" or "1.3, 80 % of peak" or "1.5, math 1.5"."""
    parts = [f"{target.sdpa:g}"] if target.sdpa else []
    parts += [f"math {target.math:g}"] if target.math else []
    parts += [f"{target.peak:.0%} of peak"] if target.peak else []
    return ", ".join(parts)


def is_reached(target: Target, ratios: dict[str, float], share: float) -> bool:
    """Whether every number aimed at was reached."""
    aims = [
        (target.sdpa, ratios.get("SDPA", 0.0)),
        (target.math, ratios.get("math", 0.0)),
        (target.peak, share),
    ]
    return all(aim is None or value >= aim for aim, value in aims)


def case_row(case: Case, work: str, settings: Settings) -> Row:
    """Times, ratios and speed, with its share of the peak that is measured before and after.

    One query does so little with each key that memory is the limit: its share is of that.
    """
    target = case.targets[work]
    inputs = case.inputs()
    names = ["SDPA", "torch_ext"] if target.sdpa else ["torch_ext"]
    names += ["math"] if target.math else []
    calls = {name: WORK[work](ATTENTIONS[name](case, inputs), inputs) for name in names}
    speeds = partial(settings.peak.speeds, case, work, settings.threads)
    before = speeds()
    times = fastest(calls, settings.seconds)
    best = Speeds(*map(max, before, speeds()))
    ratios = {name: times[name] / times["torch_ext"] for name in names}
    row = timed_row(case, work, times, target)
    unit, amount, peak = "GFLOP/s", case.flop(work), best.flop
    if case.has_one_query:
        unit, amount, peak = "GB/s", case.bytes_moved(work), best.memory
    speed = amount / times["torch_ext"]
    row[unit] = f"{speed / 1e9:.3g}"
    row["share of peak"] = f"{speed / peak:.1%}"
    other = times.get("SDPA") or times["math"]
    row["limit"] = f"{other / least_seconds(case, work, best):.2f}"
    row["reached"] = "yes" if is_reached(target, ratios, speed / peak) else "no"
    return row


def timed_row(case: Case, work: str, times: dict[str, float], target: Target) -> Row:
    """The columns that every case has; seconds in `times`.

    The limit is the ratio to SDPA, or to its math path where there is no other, that a program
    would have which took no longer than machine.least_seconds.
    """
    b, h, _, n, m, d, e = case.sizes

    def ms(name: str) -> str:
        return f"{times[name] * 1e3:.4g}" if name in times else ""

    def ratio(name: str) -> str:
        return f"{times[name] / times['torch_ext']:.2f}" if name in times else ""

    return {
        "case": case.name,
        "dtype": case.dtype,
        "B, H, N, M, D, E": f"{b}, {h}, {n}, {m}, {d}, {e}",
        "what": work,
        "ms": ms("torch_ext"),
        "SDPA ms": ms("SDPA"),
        "math ms": ms("math"),
        "ratio to SDPA": ratio("SDPA"),
        "ratio to math": ratio("math"),
        "target": describe(target),
        "reached": "",
        "GFLOP/s": "",
        "GB/s": "",
        "share of peak": "",
        "limit": "",
    }


def training_row(context: int, dtype: str, settings: Settings) -> Row:
    """A whole training step of the example's language model.

    Its limit is that of the attention alone: all else is the same in every step.
    """
    name = f"language model, context {context}"
    case = Case(name, dtype, batch=8, heads=4, queries=context, head_size=32, causal=True)
    steps = training_steps(case)
    target = Target(sdpa=1.2)
    work = "forward + backward"
    speeds = partial(settings.peak.speeds, case, work, settings.threads)
    before = speeds()
    times = fastest(steps, 2 * settings.seconds)
    best = Speeds(*map(max, before, speeds()))
    row = timed_row(case, "training step", times, target)
    attention = LAYERS * least_seconds(case, work, best)
    row["limit"] = f"{times['SDPA'] / (times['none'] + attention):.2f}"
    reached = is_reached(target, {"SDPA": times["SDPA"] / times["torch_ext"]}, 0.0)
    return {**row, "reached": "yes" if reached else "no"}


def scaling_row(work: str, settings: Settings) -> Row:
    """How much faster one head is with all threads than with one, beside plain multiply-adds."""
    case = Case("one head", heads=1, queries=4096)
    inputs = case.inputs()
    peak = Peak(settings.peak.library, {}, {})  # measured in the same rounds
    best = {1: float("inf"), settings.threads: float("inf")}
    call = WORK[work](ATTENTIONS["torch_ext"](case, inputs), inputs)
    rounds = 3 if settings.quick else 8
    for _ in range(rounds):
        for threads in best:
            torch.set_num_threads(threads)
            seconds = settings.seconds / rounds
            best[threads] = min(best[threads], fastest({"": call}, seconds)[""])
            peak.flop_per_second("float32", threads)
    torch.set_num_threads(settings.threads)
    ours = best[1] / best[settings.threads]
    plain = peak.best["float32", settings.threads] / peak.best["float32", 1]
    return {
        "case": f"one head, {work}",
        "threads": str(settings.threads),
        "1 thread ms": f"{best[1] * 1e3:.4g}",
        "all threads ms": f"{best[settings.threads] * 1e3:.4g}",
        "scaling": f"{ours:.3f}",
        "scaling of multiply-adds": f"{plain:.3f}",
        "quotient": f"{ours / plain:.3f}",
        "target": "0.95",
        "reached": "yes" if ours / plain >= 0.95 else "no",
    }


CALLS: dict[str, Callable[..., object]] = {
    "torch_ext.attention": torch_ext.attention,
    "torch.ops.torch_ext.attention": torch.ops.torch_ext.attention,
    "SDPA": F.scaled_dot_product_attention,
}
REPEATS = 200  # a call takes microseconds, and so does a look at the clock


def overhead_row(gradient: bool, settings: Settings) -> Row:
    """Microseconds of one call on tensors so small that nothing else counts."""
    options = {"requires_grad": gradient, "device": settings.device}
    tensors = [torch.randn(1, 1, 1, 8, **options) for _ in range(3)]

    def repeat(call: Callable[..., object]) -> None:
        for _ in range(REPEATS):
            call(*tensors)
        if settings.device == "cuda":
            torch.cuda.synchronize()

    times = fastest({name: partial(repeat, call) for name, call in CALLS.items()}, settings.seconds)
    what = "with a node for autograd" if gradient else "without gradient"
    return {"call": what, **{f"{n} µs": f"{t / REPEATS * 1e6:.2f}" for n, t in times.items()}}


def steps(settings: Settings) -> list[Step]:
    """All of this file, in order."""
    found = [
        Step("cases", f"{case.name} {case.dtype} {work}", partial(case_row, case, work, settings))
        for case in CASES
        for work in case.targets
    ]
    # Elsewhere torch's products of bfloat16 are slower than those of float32: nobody trains in it.
    for dtype in ("float32", "bfloat16") if torch_multiplies_bfloat16() else ("float32",):
        for context in (128, 1024):
            name = f"language model, context {context} {dtype} training step"
            found.append(Step("cases", name, partial(training_row, context, dtype, settings)))
    for work in ("forward", "backward") if settings.threads > 1 else ():
        found.append(Step("scaling", f"one head {work}", partial(scaling_row, work, settings)))
    for gradient in (False, True):
        found.append(Step("calls", "overhead of a call", partial(overhead_row, gradient, settings)))
    return found


def summary(found: dict[str, list[Row]]) -> list[str]:
    """How many of the targets were reached, and which were not."""
    rows = found.get("cases", []) + found.get("scaling", [])
    missed = [row for row in rows if row["reached"] == "no"]
    lines = [f"{len(rows) - len(missed)} of {len(rows)} targets reached"] if rows else []
    for row in missed:
        reached = row.get("quotient") or " ".join(
            x for x in (row["ratio to SDPA"], row["ratio to math"], row["share of peak"]) if x
        )
        name = ", ".join(x for x in (row["case"], row.get("dtype"), row.get("what")) if x)
        limit = f", limit {row['limit']}" if row.get("limit") else ""
        lines.append(f"  {name}: {reached}, aimed at {row['target']}{limit}")
    return lines
