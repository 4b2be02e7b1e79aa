"""The four operators on small inputs, each result beside the CPU's: what compute-sanitizer watches.

All numbers are made and compared on the CPU, so that few kernels but ours run.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

import torch
from torch import Tensor

import torch_ext  # noqa: F401  registers the operators

ops = torch.ops.torch_ext
# Coarse: sums of slopes and sinks lose digits. How exact results are is the tests' business.
FAR = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-3, torch.float64: 1e-9}

# (B, H, Hkv, N, M, D, E): tiles with and without edges, split keys, what Hopper's kernels take.
SIZES = {
    "edges": (1, 4, 2, 70, 101, 24, 40),
    "tiles": (1, 2, 2, 256, 256, 64, 64),
    "wide": (1, 1, 1, 130, 192, 128, 128),
    "widest": (1, 1, 1, 70, 80, 256, 256),
    "beyond": (1, 1, 1, 20, 33, 272, 300),
    "decode": (1, 2, 1, 1, 1000, 128, 128),
}
OPTIONS = ("plain", "causal", "all")


def leaves(sizes: tuple[int, ...], dtype: torch.dtype, options: str) -> dict[str, Tensor | None]:
    """What can be differentiated, in the order of the operators."""
    b, h, h_kv, n, m, d, e = sizes
    shapes = {"query": (b, h, n, d), "key": (b, h_kv, m, d), "value": (b, h_kv, m, e)}
    further = {"bias": (h, n, m), "slopes": (h,), "sink": (h,)}
    found: dict[str, Tensor | None] = {x: torch.randn(s).to(dtype) for x, s in shapes.items()}
    for name, shape in further.items():
        found[name] = torch.randn(shape).mul(0.1).to(dtype) if options == "all" else None
    return found


def rules(sizes: tuple[int, ...], options: str) -> dict[str, Any]:
    """The other options."""
    if options != "all":
        return {"is_causal": options == "causal"}
    b, _, _, n, m, _, _ = sizes
    mask = torch.rand(n, m) < 0.8
    mask[n // 2] = False  # a row that sees nothing
    seed = torch.arange(b)
    window = {"window_left": m // 2, "bottom_right": True}
    return {"mask": mask, "softcap": 5.0, "dropout_p": 0.2, "seed": seed, **window}


def results(
    tensors: dict[str, Tensor | None], moving: dict[str, Tensor | None], options: dict[str, Any]
) -> list[Tensor]:
    """Of all four operators."""
    inputs = [tensors[x] for x in ("query", "key", "value")]
    given = {**options, **{x: tensors[x] for x in ("bias", "slopes", "sink")}}
    forward = ops.attention_forward(*inputs, **given)
    saved = (*inputs, *forward)
    grads = (torch.ones_like(forward[0]), torch.ones_like(forward[1]))
    backward = ops.attention_backward(*grads, *saved, **given)
    tangent = ops.attention_tangent(*moving.values(), *saved, **given)
    second = ops.attention_second_order(*grads, *moving.values(), *saved, **given)
    return [x.cpu() for x in (*forward[:2], *backward, *tangent, *second) if x is not None]


def far_apart(ours: list[Tensor], cpu: list[Tensor], bound: float) -> float:
    """The largest distance of a result, relative to its norm, if that is above the bound, or 0."""
    found = 0.0
    for a, b in zip(ours, cpu, strict=True):
        finite = b.isfinite()
        if not torch.equal(a.isfinite(), finite):
            return float("inf")
        a, b = (x.double().where(finite, 0) for x in (a, b))
        distance = ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
        found = max(found, distance if distance > bound else 0.0)
    return found


def main() -> int:
    """1 where a result is far from the CPU's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--few", action="store_true", help="one dtype for each size")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    wrong = 0
    for number, (size, options) in enumerate(itertools.product(SIZES, OPTIONS)):
        dtypes = list(FAR) if not chosen.few else [list(FAR)[number % len(FAR)]]
        for dtype in dtypes:
            tensors = leaves(SIZES[size], dtype, options)
            moving = leaves(SIZES[size], dtype, options)
            others = rules(SIZES[size], options)
            expected = results(tensors, moving, others)
            got = results(*(_moved(x, chosen.device) for x in (tensors, moving, others)))
            distance = far_apart(got, expected, FAR[dtype])
            wrong += distance > 0
            verdict = f"FAR FROM THE CPU: {distance:.2g}" if distance else "as on the CPU"
            print(f"{size}, {options}, {dtype}: {verdict}", flush=True)
    return 1 if wrong else 0


def _moved(values: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in values.items()}


if __name__ == "__main__":
    sys.exit(main())
