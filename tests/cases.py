"""What the operators are tried on: shapes, layouts, masks, options, dtypes, and mixtures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any

import torch
from calls import Arguments
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
    (113, 203), (203, 113), (799, 3), (1, 239), (323, 130),
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

# (window_left, window_right, bottom_right). Tiles have up to 64 queries and 96 keys.
WINDOWS: dict[str, tuple[int | None, int | None, bool]] = {
    "no_window": (None, None, False),
    "bottom_right": (None, None, True),
    "narrow": (20, 10, False),
    "narrow_bottom_right": (30, 5, True),
    "diagonal": (0, 0, False),
    "left": (40, None, False),
    "causal_bottom_right": (None, 0, True),
    "wide": (150, 100, False),
}

SOFTCAPS = {"no_softcap": None, "soft": 30.0, "hard": 0.7}

# What a number per head may be broadcast over.
PER_HEAD = ["absent", "cell", "head", "sample", "full"]

DROPOUTS = {"no_dropout": 0.0, "dropout": 0.2, "most_dropped": 0.9}

# All at once, as fields of a Case.
ALL_OPTIONS: dict[str, Any] = {
    "leading": "grouped",
    "masking": "bias_mask",
    "window": "narrow_bottom_right",
    "softcap": 1.5,
    "slopes": "head",
    "sink": "full",
    "dropout_p": 0.2,
}


@dataclass(frozen=True)
class Case:
    """One mixture of everything above."""

    lengths: tuple[int, int] = (5, 7)
    head_sizes: tuple[int, int] = (8, 8)
    leading: str = "batched"
    layout: str = "contiguous"
    masking: str = "none"
    dtype: torch.dtype = torch.float32
    scale: float | None = None
    window: str = "no_window"
    softcap: float | None = None
    slopes: str = "absent"
    sink: str = "absent"
    dropout_p: float = 0.0
    is_wide: bool = False  # bias, slopes and sink of a 16-bit query are float32

    def __str__(self) -> str:
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default and field.name not in ("lengths", "head_sizes", "dtype"):
                continue
            if isinstance(value, tuple):
                parts.append("x".join(map(str, value)))
            elif isinstance(value, str):
                parts.append(f"{field.name}_{value}" if value in PER_HEAD else value)
            elif isinstance(value, torch.dtype):
                parts.append(str(value).removeprefix("torch."))
            else:
                parts.append(f"{field.name}_{value}".removesuffix("_True"))
        return "-".join(parts)

    def arguments(self, device: torch.device | str = "cpu") -> Arguments:
        """Random arguments."""
        (n, m), (d, e) = self.lengths, self.head_sizes
        lead, kv_lead = LEADING[self.leading]
        dtype = torch.float32 if self.is_wide and self.dtype.itemsize == 2 else self.dtype
        mask_shape, bias_shape, is_causal = MASKINGS[self.masking]
        q, k, v = (
            arrange(torch.randn(s, dtype=torch.float64).to(device, self.dtype), self.layout)
            for s in [(*lead, n, d), (*kv_lead, m, d), (*kv_lead, m, e)]
        )
        args = Arguments(q, k, v, is_causal=is_causal, scale=self.scale, softcap=self.softcap)
        args.window_left, args.window_right, args.bottom_right = WINDOWS[self.window]
        if mask_shape is not None:
            args.mask = torch.rand(_broadcast_shape(mask_shape, lead, n, m), device=device) < 0.7
            if args.mask.dim() >= 2 and n > 2 and args.mask.shape[-2] == n:
                args.mask[..., n // 2, :] = False  # a row that sees nothing
        if bias_shape is not None:
            bias = torch.randn(_broadcast_shape(bias_shape, lead, n, m), device=device).to(dtype)
            hidden = torch.rand(bias.shape, device=device) < 0.1
            args.bias = bias.masked_fill(hidden, -torch.inf)
        if self.slopes != "absent":  # of either sign
            shape = _per_head_shape(self.slopes, lead)
            args.slopes = torch.randn(shape, device=device).mul(0.1).to(dtype)
        if self.sink != "absent":
            args.sink = torch.randn(_per_head_shape(self.sink, lead), device=device).to(dtype)
        if self.dropout_p > 0:
            args.dropout_p = self.dropout_p
            args.seed = torch.randint(-(2**63), 2**63 - 1, lead[:-1], device=device)
        return args


def arguments(*choices: Any, device: torch.device | str = "cpu", **more: Any) -> Arguments:
    """Random arguments, described as the fields of a Case."""
    return Case(*choices, **more).arguments(device)


def _per_head_shape(name: str, lead: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `lead`, whose last dimension counts heads."""
    return {
        "cell": (),
        "head": lead[-1:],
        "sample": (*lead[:-1], 1) if lead else (1,),
        "full": lead,
    }[name]


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


# The order of the fields of Case.
CASES = [
    Case(*row)
    for row in pairwise(
        [
            LENGTHS,
            HEAD_SIZES,
            list(LEADING),
            LAYOUTS,
            list(MASKINGS),
            list(DTYPES.values()),
            list(SCALES.values()),
            list(WINDOWS),
            list(SOFTCAPS.values()),
            PER_HEAD,
            PER_HEAD,
            list(DROPOUTS.values()),
            [False, True],
        ]
    )
]
