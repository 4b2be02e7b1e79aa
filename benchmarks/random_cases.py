"""Cases drawn with a fixed seed, so that none was chosen: each is to be no slower than SDPA."""

from __future__ import annotations

import math
import random
from functools import partial

import torch

from benchmarks.cases import LAYOUTS, Case, Target
from benchmarks.measure import fastest
from benchmarks.suite import Row, Settings, Step
from benchmarks.work import ATTENTIONS, WORK

COUNT = 200
FORWARD_FLOP = 8e9  # at most, so that all of them take minutes
BACKWARD_FLOP = 2e9  # of the forward, for the backward to be measured as well
SCORES = 2**26  # at most: SDPA's math path keeps several matrices of them
DTYPES = ("float32", "float64", "bfloat16", "float16")
TARGET = Target(sdpa=1.0)


def draw(count: int = COUNT, seed: int = Settings.seed) -> list[Case]:
    """`count` cases that SDPA can do, the same ones each time."""
    generator = random.Random(seed)
    return [_draw_one(i, generator) for i in range(count)]


def _draw_one(number: int, generator: random.Random) -> Case:
    """Sizes log-uniform in B H 1-64, N and M 1-4096, D and E 8-256, drawn again if too much work.

    SDPA refuses a mask beside is_causal, so a case has one of them or neither.
    """

    def log_uniform(lowest: int, highest: int) -> int:
        return round(math.exp(generator.uniform(math.log(lowest), math.log(highest))))

    def divisor(of: int) -> int:
        return generator.choice([i for i in range(1, of + 1) if of % i == 0])

    while True:
        both = log_uniform(1, 64)
        heads = divisor(both)
        head_size = _head_size(log_uniform(8, 256), generator)
        value_head_size = _head_size(log_uniform(8, 256), generator)
        visible = generator.choice(["none", "none", "bool", "bias", "causal", "causal"])
        case = Case(
            f"random {number}",
            generator.choice(DTYPES),
            batch=both // heads,
            heads=heads,
            key_heads=divisor(heads) if generator.random() < 0.3 else heads,
            queries=log_uniform(1, 4096),
            keys=log_uniform(1, 4096),
            head_size=head_size,
            value_head_size=head_size if generator.random() < 0.7 else value_head_size,
            causal=visible == "causal",
            mask="none" if visible == "causal" else visible,
            layout=generator.choice(LAYOUTS),
            targets={"forward": TARGET},
        )
        scores = both * case.sizes[3] * case.sizes[4]
        if case.flop("forward") <= FORWARD_FLOP and scores <= SCORES:
            return case


def _head_size(size: int, generator: random.Random) -> int:
    """A multiple of 8 in two of three cases, as most head sizes are."""
    return max(8, size // 8 * 8) if generator.random() < 2 / 3 else size


def ratio(case: Case, work: str, seconds: float) -> float:
    """SDPA's time by ours. One below 1 is measured again, longer; the best of each counts."""
    inputs = case.inputs()
    calls = {
        name: WORK[work](ATTENTIONS[name](case, inputs), inputs) for name in ("SDPA", "torch_ext")
    }
    times = fastest(calls, seconds)
    if times["SDPA"] < times["torch_ext"]:
        again = fastest(calls, 4 * seconds)
        times = {name: min(times[name], again[name]) for name in times}
    return times["SDPA"] / times["torch_ext"]


def random_row(case: Case, settings: Settings) -> Row:
    """The case and its ratios; an empty ratio where the backward would take long."""
    torch.manual_seed(0)
    seconds = settings.seconds / 8
    forward = ratio(case, "forward", seconds)
    small = case.flop("forward") <= BACKWARD_FLOP
    backward = f"{ratio(case, 'backward', seconds):.3f}" if small else ""
    b, h, h_kv, n, m, d, e = case.sizes
    return {
        "case": case.name,
        "dtype": case.dtype,
        "B, H, Hkv, N, M, D, E": f"{b}, {h}, {h_kv}, {n}, {m}, {d}, {e}",
        "layout": case.layout,
        "mask": "causal" if case.causal else case.mask,
        "forward": f"{forward:.3f}",
        "backward": backward,
    }


def steps(settings: Settings) -> list[Step]:
    """All of them, or every fourth."""
    cases = draw(seed=settings.seed)[:: 4 if settings.quick else 1]
    return [
        Step("random", f"{case.name} {case.dtype}", partial(random_row, case, settings))
        for case in cases
    ]


def summary(rows: list[Row]) -> list[str]:
    """How many are at least 1, the smallest, and those below."""
    lines = []
    for work in ("forward", "backward"):
        measured = [(float(row[work]), row) for row in rows if row[work]]
        if not measured:
            continue
        below = sorted((x for x in measured if x[0] < 1), key=lambda x: x[0])
        smallest = min(value for value, _ in measured)
        lines.append(
            f"{work}: {len(measured) - len(below)} of {len(measured)} random cases at 1.0 or more, "
            f"the smallest {smallest:.2f}"
        )
        lines += [f"  {value:.2f}  {', '.join(list(row.values())[:5])}" for value, row in below]
    return lines
