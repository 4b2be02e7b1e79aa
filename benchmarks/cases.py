"""The cases, what is measured of each, and the ratios aimed at.

Sizes as in the README: B batch, H heads, Hkv heads of key and value, N queries, M keys, D head size
of query and key, E of value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "heads inside", "strided")
MASKS = ("none", "bool", "bias", "learned bias")


class Operator(NamedTuple):
    """What an operator cannot do without.

    For each visible pair of a query and a key: products of D and of E numbers, and one exponential.
    Once: to read or write so many tensors like the inputs and so many like the output.
    """

    head_size: int
    value_head_size: int
    inputs: int
    outputs: int


# With s = q k^T, dp = do v^T, a weight p, a gradient of scores ds and tangents marked by a prime:
FORWARD = Operator(1, 1, 1, 1)  # s; p v
BACKWARD = Operator(3, 2, 2, 2)  # s, ds k, ds^T q; dp, p^T do
TANGENT = Operator(3, 2, 2, 2)  # s, q' k^T, q k'^T; p' v, p v'
SECOND_ORDER = Operator(
    7, 3, 3, 1
)  # s, s' in two; ds' k, ds k', ds'^T q, ds^T q'; dp, dp', p'^T do

# By work.WORK; autograd calls them one after another.
OPERATORS = {
    "forward": (FORWARD,),
    "backward": (BACKWARD,),
    "forward + backward": (FORWARD, BACKWARD),
    "double backward": (FORWARD, BACKWARD, SECOND_ORDER),
    "jvp": (FORWARD, TANGENT),
    "Hessian-vector product": (FORWARD, TANGENT, BACKWARD, SECOND_ORDER),
}


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

    @property
    def has_one_query(self) -> bool:
        """So that little is done with each key."""
        return self.queries == 1

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees, of one head; a mask may hide some of them."""
        _, _, _, n, m, _, _ = self.sizes
        seen = min(n, m)  # rows of the causal triangle
        return seen * (seen + 1) // 2 + (n - seen) * m if self.causal else n * m

    def flop(self, work: str) -> float:
        """Operations in the products of visible pairs; 0 for work of other operators."""
        b, h, _, _, _, d, e = self.sizes
        products = sum(x.head_size * d + x.value_head_size * e for x in OPERATORS.get(work, ()))
        return 2.0 * b * h * self.pairs * products

    def exponentials(self, work: str) -> float:
        """One for each visible pair in every operator, as none keeps weights for another."""
        return float(self.batch * self.heads * self.pairs * len(OPERATORS[work]))

    def bytes_moved(self, work: str) -> float:
        """Bytes of what the operators read and write, each tensor once in every operator."""
        return sum(self._bytes_moved_by(operator) for operator in OPERATORS[work])

    def bytes_held(self, work: str) -> float:
        """Bytes of the tensors of the operator with most of them; others have part of these."""
        return max(self._bytes_moved_by(operator) for operator in OPERATORS[work])

    def _bytes_moved_by(self, operator: Operator) -> float:
        b, h, h_kv, n, m, d, e = self.sizes
        size = getattr(torch, self.dtype).itemsize
        inputs = size * b * (h * n * d + h_kv * m * (d + e))
        once = self.pairs if self.mask == "bool" else 0
        if self.mask == "bias":
            once = size * h * self.pairs
        if self.mask == "learned bias":
            inputs += size * h * self.pairs
        return float(operator.inputs * inputs + operator.outputs * size * b * h * n * e + once)


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
    Case("medium, causal", batch=8, queries=128, causal=True, targets=_both(1.0, 1.0)),
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
