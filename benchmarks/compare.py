"""Times torch_ext against torch's scaled_dot_product_attention (SDPA), forward and backward.

Both run in turn in one process and the minimum of many repeats counts, so that a shared or
throttled machine slows both alike. Ratios above 1 mean that torch_ext is faster. The README's table
is the output of

    make bench

SDPA is called as a user would call it and picks its own path: its fused kernel where it can, plain
mathematics where it cannot (a bias that needs a gradient, E != D).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import fastest, report
from tqdm import tqdm

import torch_ext

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes as in the README: batch, heads, queries, keys, head size, value head size."""

    name: str
    dtype: str = "fp32"
    batch: int = 1
    heads: int = 8
    queries: int = 2048
    keys: int = 2048
    head_size: int = 64
    value_head_size: int = 64
    causal: bool = False
    bias: bool = False

    def tensors(self) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor]:
        """query, key and value, the bias or None, and the output's gradient."""
        dtype = DTYPES[self.dtype]

        def tensor(*shape: int) -> torch.Tensor:
            return torch.randn(self.batch, self.heads, *shape, dtype=dtype, requires_grad=True)

        inputs = [
            tensor(self.queries, self.head_size),
            tensor(self.keys, self.head_size),
            tensor(self.keys, self.value_head_size),
        ]
        bias = None
        if self.bias:
            bias = torch.randn(
                1, self.heads, self.queries, self.keys, dtype=dtype, requires_grad=True
            )
        shape = (self.batch, self.heads, self.queries, self.value_head_size)
        return inputs, bias, torch.randn(shape, dtype=dtype)


CASES = [
    Case("long"),
    Case("long", "bf16"),
    Case("long", "fp16"),
    Case("long", "fp64", queries=1024, keys=1024),
    Case("long, head size 128", head_size=128, value_head_size=128),
    Case("long, causal", causal=True),
    Case("one head", heads=1, queries=4096, keys=4096),
    Case("short", batch=32, queries=32, keys=32),
    Case("medium", batch=8, queries=128, keys=128),
    Case("decode", heads=16, queries=1, keys=4096, head_size=128, value_head_size=128),
    Case("bias with gradient", queries=1024, keys=1024, bias=True),
    Case("values wider than keys", queries=1024, keys=1024, value_head_size=128),
]


def measure(case: Case, seconds: float) -> dict[str, object]:
    """Times of both in milliseconds, forward without gradients and backward alone, and ratios."""
    (query, key, value), bias, grad_output = case.tensors()

    def ours() -> torch.Tensor:
        return torch_ext.attention(query, key, value, bias=bias, is_causal=case.causal)

    def sdpa() -> torch.Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, is_causal=case.causal
        )

    with torch.no_grad():
        forward = fastest([sdpa, ours], seconds)
    inputs = [t for t in (query, key, value, bias) if t is not None]
    outputs = [sdpa(), ours()]
    backward = fastest(
        [
            lambda o=o: torch.autograd.grad(o, inputs, grad_output, retain_graph=True)
            for o in outputs
        ],
        seconds,
    )
    return {
        "case": case.name,
        "dtype": case.dtype,
        "B, H, N, M, D, E": (
            f"{case.batch}, {case.heads}, {case.queries}, {case.keys}, "
            f"{case.head_size}, {case.value_head_size}"
        ),
        "forward SDPA ms": f"{forward[0] * 1e3:.2f}",
        "forward ms": f"{forward[1] * 1e3:.2f}",
        "forward ratio": f"{forward[0] / forward[1]:.2f}",
        "backward SDPA ms": f"{backward[0] * 1e3:.2f}",
        "backward ms": f"{backward[1] * 1e3:.2f}",
        "backward ratio": f"{backward[0] / backward[1]:.2f}",
    }


def main() -> None:
    """Runs the cases and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="time for each measurement (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s"
    )
    parser.add_argument("--only", default="", help="cases whose name or dtype contains this")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    cases = [c for c in CASES if options.only in c.name or options.only in c.dtype]
    if not cases:
        sys.exit(f"--only: expected part of a case name or dtype, but got '{options.only}'")
    rows = [measure(case, options.seconds) for case in tqdm(cases, desc="measuring", unit="case")]
    report(rows, options.csv)


if __name__ == "__main__":
    main()
