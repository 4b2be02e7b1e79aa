"""What the operators are tried on: shapes, layouts, masks, biases, dtypes, scales, and mixtures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from reference import Results
from torch import Tensor

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# (N, M): one, odd, and around the sizes of vectors and tiles; tall, wide, and both.
LENGTHS = [
    (1, 1), (3, 3), (17, 17), (40, 40), (63, 65), (64, 64), (65, 63), (80, 80), (129, 127),
    (113, 203), (203, 113), (799, 3), (1, 239), (515, 130),
]  # fmt: skip

# (D, E)
HEAD_SIZES = [
    (1, 1), (3, 3), (40, 40), (64, 64), (80, 80), (96, 96), (111, 111), (128, 128), (256, 256),
    (300, 300),     (64, 40), (3, 128),
]  # fmt: skip

# Leading dimensions of query, and of key and value.
LEADING: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one_head": ((), ()),
    "unbatched": ((3,), (3,)),
    "batched": ((2, 3), (2, 3)),
    "grouped": ((2, 4), (2, 2)),
    "multi_query": ((2, 3), (2, 1)),
    "five_dims": ((2, 1, 2), (2, 1, 2)),
    "five_dims_grouped": ((2, 1, 4), (2, 1, 2)),
}

LAYOUTS = [
    "contiguous",
    "heads_inside",
    "strided",
    "transposed",
    "expanded",
    "packed",
    "misaligned",
]

# Name: (shape of the mask, shape of the bias, is_causal). `_broadcast_shape` knows the shapes.
MASKINGS: dict[str, tuple[str | None, str | None, bool]] = {
    "none": (None, None, False),
    "causal": (None, None, True),
    "mask_full": ("full", None, False),
    "mask_padding": ("keys", None, False),
    "mask_rows": ("rows", None, False),
    "mask_per_head": ("heads", None, False),
    "mask_square": ("square", None, False),
    "mask_causal": ("full", None, True),
    "bias_full": (None, "full", False),
    "bias_per_head": (None, "heads", False),
    "bias_square": (None, "square", False),
    "bias_padding": (None, "keys", False),
    "bias_rows": (None, "rows", False),
    "bias_one_per_head": (None, "head", False),
    "bias_per_sample": (None, "sample", False),
    "bias_causal": (None, "heads", True),
    "bias_mask": ("keys", "square", False),
    "bias_mask_causal": ("full", "full", True),
}

SCALES = {"default": None, "zero": 0.0, "negative": -0.3, "small": 1e-3, "large": 2.5}


@dataclass
class Arguments:
    """Arguments of one call."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    bias: Tensor | None = None
    is_causal: bool = False
    scale: float | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    @property
    def options(self) -> dict[str, Any]:
        return {
            "mask": self.mask,
            "bias": self.bias,
            "is_causal": self.is_causal,
            "scale": self.scale,
        }

    @property
    def leaves(self) -> list[Tensor]:
        """What can be differentiated: query, key, value and, where there is one, the bias."""
        return [*self.tensors, *([] if self.bias is None else [self.bias])]

    def requires_grad(self) -> Arguments:
        """The same tensors, in the same memory, as leaves of a new graph."""
        leaves = [x.detach().requires_grad_() for x in self.leaves]
        names = ["query", "key", "value", "bias"][: len(leaves)]
        return replace(self, **dict(zip(names, leaves, strict=True)))

    def __call__(self, op: Any = None) -> Any:
        """Calls an operator, `torch_ext::attention_forward` unless told otherwise."""
        return (op or torch.ops.torch_ext.attention_forward)(*self.tensors, **self.options)


def arguments(
    lengths: tuple[int, int] = (5, 7),
    head_sizes: tuple[int, int] = (8, 8),
    leading: str = "batched",
    layout: str = "contiguous",
    masking: str = "none",
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
    *,
    wide_bias: bool = False,
    device: torch.device | str = "cpu",
) -> Arguments:
    """Random arguments. With `wide_bias` a 16-bit query gets a float32 bias."""
    (n, m), (d, e) = lengths, head_sizes
    lead, kv_lead = LEADING[leading]
    mask_shape, bias_shape, is_causal = MASKINGS[masking]
    shapes = [(*lead, n, d), (*kv_lead, m, d), (*kv_lead, m, e)]
    q, k, v = (
        arrange(torch.randn(s, dtype=torch.float64).to(device, dtype), layout) for s in shapes
    )
    mask = bias = None
    if mask_shape is not None:
        mask = torch.rand(_broadcast_shape(mask_shape, lead, n, m), device=device) < 0.7
        if mask.dim() >= 2 and n > 2 and mask.shape[-2] == n:
            mask[..., n // 2, :] = False  # a row that sees nothing
    if bias_shape is not None:
        wide = torch.float32 if wide_bias and dtype.itemsize == 2 else dtype
        bias = torch.randn(_broadcast_shape(bias_shape, lead, n, m), device=device).to(wide)
        bias = bias.masked_fill(torch.rand(bias.shape, device=device) < 0.1, -torch.inf)
    return Arguments(q, k, v, mask, bias, is_causal, scale)


def _broadcast_shape(name: str, lead: tuple[int, ...], n: int, m: int) -> tuple[int, ...]:
    """A shape that broadcasts to (*lead, n, m)."""
    return {
        "full": (*lead, n, m),
        "heads": (*lead[-1:], n, m),
        "square": (n, m),
        "keys": (1,) * len(lead) + (1, m),
        "rows": (n, 1),
        "head": (*lead[-1:], 1, 1),
        "sample": (*lead[:-1], *((1,) * len(lead[-1:])), 1, m),
        "cell": (),
    }[name]


def arrange(x: Tensor, layout: str) -> Tensor:
    """The values of x (…, rows, columns), laid out in memory in another way. Gaps hold NaN."""
    *lead, rows, columns = x.shape
    if (
        layout == "heads_inside" and lead
    ):  # (batch, length, heads, head size), as a projection leaves it
        return x.transpose(-3, -2).contiguous().transpose(-3, -2)
    if layout == "strided":  # the last dimension is not contiguous
        return _gaps(*lead, rows, 2 * columns, like=x)[..., ::2].copy_(x)
    if layout == "transposed":  # columns are further apart than rows
        return x.mT.contiguous().mT
    if (
        layout == "expanded" and lead
    ):  # the same memory for every sample: takes the first one's values
        return x[:1].contiguous().expand(x.shape)
    if (
        layout == "packed"
    ):  # a part of something wider, as one projection to query, key and value leaves it
        return _gaps(*lead, rows, 3 * columns, like=x)[..., columns : 2 * columns].copy_(x)
    if layout == "misaligned":
        return _gaps(x.numel() + 1, like=x)[1:].view(x.shape).copy_(x)
    return x.contiguous()


def _gaps(*shape: int, like: Tensor) -> Tensor:
    return torch.full(shape, torch.nan, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Case:
    """One mixture of everything above."""

    lengths: tuple[int, int]
    head_sizes: tuple[int, int]
    leading: str
    layout: str
    masking: str
    dtype: str
    scale: str
    wide_bias: bool

    def __str__(self) -> str:
        (n, m), (d, e) = self.lengths, self.head_sizes
        wide = "-wide_bias" if self.wide_bias else ""
        kinds = f"{self.leading}-{self.layout}-{self.masking}-{self.dtype}"
        return f"{n}x{m}-{d}x{e}-{kinds}-scale_{self.scale}{wide}"

    def arguments(self, device: torch.device | str = "cpu") -> Arguments:
        return arguments(
            self.lengths,
            self.head_sizes,
            self.leading,
            self.layout,
            self.masking,
            DTYPES[self.dtype],
            SCALES[self.scale],
            wide_bias=self.wide_bias,
            device=device,
        )


def pairwise(axes: list[list[Any]]) -> list[tuple[Any, ...]]:
    """Rows with one value of each axis; any two values of two axes meet in some row. Greedy."""

    def pairs(row: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(range(len(axes)), 2)}

    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(axes)), 2)
        for i in range(len(axes[a]))
        for j in range(len(axes[b]))
    }

    def gain(row: dict[int, int], axis: int, choice: int) -> int:
        """How many missing pairs the choice would make with what the row has."""
        return sum(
            (*min(new, old), *max(new, old)) in missing
            for old in row.items()
            for new in [(axis, choice)]
        )

    rows: list[tuple[Any, ...]] = []
    while missing:
        a, i, b, j = min(missing)
        row = {a: i, b: j}
        for axis in sorted(set(range(len(axes))) - {a, b}, key=lambda x: -len(axes[x])):
            size = len(axes[axis])
            # Among equals, rotate: otherwise the first choice would be tried far too often.
            choices = [(len(rows) + c) % size for c in range(size)]
            gains = [gain(row, axis, choice) for choice in choices]
            row[axis] = choices[gains.index(max(gains))]
        indices = tuple(row[x] for x in range(len(axes)))
        missing -= pairs(indices)
        rows.append(tuple(axes[x][i] for x, i in enumerate(indices)))
    return rows


CASES = [
    Case(*row)
    for row in pairwise(
        [
            LENGTHS,
            HEAD_SIZES,
            list(LEADING),
            LAYOUTS,
            list(MASKINGS),
            list(DTYPES),
            list(SCALES),
            [False, True],
        ]
    )
]


def cotangents(results: Results | tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Random gradients of output and logsumexp."""
    output, lse = (
        (results.output, results.logsumexp) if isinstance(results, Results) else results[:2]
    )
    return torch.randn_like(output), torch.randn_like(lse)


def operator_results(
    args: Arguments, grad_output: Tensor | None, grad_logsumexp: Tensor | None
) -> Results:
    """Runs the operator forward and backward through autograd."""
    args = args.requires_grad()
    output, lse, _ = args()
    cotangents = [
        (y, g) for y, g in [(output, grad_output), (lse, grad_logsumexp)] if g is not None
    ]
    ys, gs = zip(*cotangents, strict=True)
    grads = torch.autograd.grad(ys, args.leaves, gs, materialize_grads=True)
    return Results(output.detach(), lse.detach(), *grads)
