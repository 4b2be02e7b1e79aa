"""The cases, what is measured of each, and the ratios aimed at.

Sizes as in the README: B batch, H heads, Hkv heads of key and value, N queries, M keys, D head size
of query and key, E of value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "heads inside", "strided")
MASKS = ("none", "bool", "bias", "learned bias")


@dataclass(frozen=True)
class Target:
    """Lowest ratio to SDPA and to its math path, lowest share of the multiply-add peak."""

    sdpa: float | None = None
    math: float | None = None
    peak: float | None = None


@dataclass(frozen=True)
class Inputs:
    """Random tensors of a case; query (B, H, N, D), key (B, Hkv, M, D), value (B, Hkv, M, E)."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None  # bool
    bias: Tensor | None  # (1, H, N, M)
    grad_output: Tensor  # (B, H, N, E)

    def differentiable(self) -> list[Tensor]:
        """Those that gradients are taken of."""
        bias = [] if self.bias is None or not self.bias.requires_grad else [self.bias]
        return [self.query, self.key, self.value, *bias]


@dataclass(frozen=True)
class Case:
    """Sizes and options; targets says what is measured (a key of work.WORK) and what is aimed at.

    layout: "contiguous"; "heads inside", a transposed (B, N, H, D); "strided", every second number
    of rows twice as long.
    """

    name: str
    dtype: str = "float32"
    batch: int = 1
    heads: int = 8
    key_heads: int | None = None  # as heads
    queries: int = 2048
    keys: int | None = None  # as queries
    head_size: int = 64
    value_head_size: int | None = None  # as head_size
    causal: bool = False
    mask: str = "none"
    dropout_p: float = 0.0
    layout: str = "contiguous"
    targets: Mapping[str, Target] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """B, H, Hkv, N, M, D, E."""
        keys = self.queries if self.keys is None else self.keys
        value_head_size = self.head_size if self.value_head_size is None else self.value_head_size
        key_heads = self.heads if self.key_heads is None else self.key_heads
        sizes = (self.batch, self.heads, key_heads, self.queries, keys)
        return (*sizes, self.head_size, value_head_size)

    def inputs(self) -> Inputs:
        """New random tensors from torch's generator."""
        b, h, h_kv, n, m, d, e = self.sizes
        mask = bias = None
        if self.mask == "bool":
            mask = torch.rand(1, 1, n, m) < 0.8
        elif self.mask != "none":
            bias = torch.randn(1, h, n, m, dtype=getattr(torch, self.dtype))
            bias.requires_grad_(self.mask == "learned bias")
        return Inputs(
            query=self._tensor(b, h, n, d).requires_grad_(),
            key=self._tensor(b, h_kv, m, d).requires_grad_(),
            value=self._tensor(b, h_kv, m, e).requires_grad_(),
            mask=mask,
            bias=bias,
            grad_output=torch.randn(b, h, n, e, dtype=getattr(torch, self.dtype)),
        )

    def _tensor(self, b: int, h: int, length: int, size: int) -> Tensor:
        dtype = getattr(torch, self.dtype)
        if self.layout == "heads inside":
            return torch.randn(b, length, h, size, dtype=dtype).transpose(1, 2)
        if self.layout == "strided":
            return torch.randn(b, h, length, 2 * size, dtype=dtype)[..., ::2]
        return torch.randn(b, h, length, size, dtype=dtype)

    def flop(self, work: str) -> float:
        """Operations in products of visible pairs; 0 for what has no agreed count.

        Forward q k^T and p v; backward q k^T, do v^T, p^T do, ds k and ds^T q.
        """
        b, h, _, n, m, d, e = self.sizes
        seen = min(n, m)  # rows of the causal triangle
        pairs = seen * (seen + 1) // 2 + (n - seen) * m if self.causal else n * m
        forward, backward = 2 * (d + e), 2 * (3 * d + 2 * e)
        each = {"forward": forward, "backward": backward, "forward + backward": forward + backward}
        return float(b * h * pairs * each.get(work, 0))

    def bytes_moved(self, work: str) -> float:
        """Bytes of query, key, value and output; for the backward also of their gradients."""
        b, h, h_kv, n, m, d, e = self.sizes
        numbers = (b * h * n + b * h_kv * m) * (d + e)
        passes = {"forward": 1, "backward": 2, "forward + backward": 3}.get(work, 0)
        return float(passes * numbers * getattr(torch, self.dtype).itemsize)


def _both(forward: float, backward: float, peak: float | None = None) -> dict[str, Target]:
    return {"forward": Target(forward, peak=peak), "backward": Target(backward)}


def _sixteen_bits(forward: float, backward: float) -> dict[str, Target]:
    return {"forward": Target(forward, 1.5), "backward": Target(backward, 1.5)}


_SHORT = {"batch": 32, "queries": 32}
_DECODE = {"heads": 16, "queries": 1, "keys": 4096, "head_size": 128}
_HEAD = {"heads": 1, "queries": 4096}
_N1024 = {"queries": 1024}

CASES = [
    Case("long", targets=_both(1.3, 1.5, peak=0.80)),
    Case("long, D 128", head_size=128, targets=_both(1.2, 1.4, peak=0.85)),
    Case("long, causal", causal=True, targets=_both(1.5, 1.5)),
    Case("long, causal, D 128", head_size=128, causal=True, targets=_both(1.5, 1.5)),
    Case("short", **_SHORT, targets=_both(2.2, 2.0)),
    Case("medium", batch=8, queries=128, targets=_both(1.5, 2.0)),
    Case("decode", **_DECODE, targets=_both(1.7, 3.0)),
    Case("decode", "bfloat16", **_DECODE, targets={"forward": Target(6.0)}),
    Case("decode", "float16", **_DECODE, targets={"forward": Target(10.5)}),
    Case("N 1024", "bfloat16", **_N1024, targets=_sixteen_bits(1.3, 12.0)),
    Case("N 1024", "float16", **_N1024, targets=_sixteen_bits(1.8, 14.0)),
    Case("N 1024", "float64", **_N1024, targets=_both(1.8, 1.8)),
    Case("one head", **_HEAD, targets=_both(1.3, 1.5)),
    Case(
        "bias with gradient",
        **_N1024,
        mask="learned bias",
        targets={"forward + backward": Target(2.5)},
    ),
    Case("dropout 0.1", **_N1024, dropout_p=0.1, targets={"forward + backward": Target(4.0)}),
    Case("E 128", **_N1024, value_head_size=128, targets={"forward": Target(2.5)}),
    Case(
        "second derivatives",
        **_N1024,
        targets={
            "double backward": Target(math=3.0),
            "jvp": Target(math=4.0),
            "Hessian-vector product": Target(math=1.0),
        },
    ),
]
