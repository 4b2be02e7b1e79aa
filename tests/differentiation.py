"""What the tests of derivatives share: small mixtures of options, functions of what can be
differentiated, the same functions in plain PyTorch, and a recorder of what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from calls import Arguments
from cases import PER_HEAD, arguments, pairwise
from plain import forward
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Function = Callable[..., Any]

# (window_left, window_right, bottom_right) that hide something of a few keys.
WINDOWS: dict[str, tuple[int | None, int | None, bool]] = {
    "no_window": (None, None, False),
    "window": (1, 1, False),
    "window_bottom_right": (2, 1, True),
    "left": (1, None, False),
    "right_bottom_right": (None, 0, True),
    "diagonal": (0, 0, False),
}

# What is differentiated, as far as it is there.
WANTED: dict[str, tuple[str, ...]] = {
    "all": ("query", "key", "value", "bias", "slopes", "sink"),
    "query": ("query",),
    "key_bias": ("key", "bias"),
    "value": ("value",),
    "value_sink": ("value", "sink"),
    "query_slopes": ("query", "slopes"),
}


@dataclass(frozen=True)
class SmallCase:
    """One mixture of options in float64, small enough for numerical differentiation."""

    lengths: tuple[int, int] = (4, 5)
    head_sizes: tuple[int, int] = (3, 2)
    leading: str = "grouped"
    masking: str = "none"
    window: str = "no_window"
    scale: float | None = None
    softcap: float | None = None
    slopes: str = "absent"
    sink: str = "absent"
    dropout_p: float = 0.0
    wanted: str = "all"

    def __str__(self) -> str:
        (n, m), (d, e) = self.lengths, self.head_sizes
        numbers = f"scale_{self.scale}-softcap_{self.softcap}-dropout_{self.dropout_p}"
        per_head = f"slopes_{self.slopes}-sink_{self.sink}"
        return (
            f"{n}x{m}-{d}x{e}-{self.leading}-{self.masking}-{self.window}-{numbers}-{per_head}"
            f"-{self.wanted}"
        )

    def arguments(
        self, device: torch.device | str, dtype: torch.dtype = torch.float64
    ) -> Arguments:
        args = arguments(
            self.lengths,
            self.head_sizes,
            self.leading,
            masking=self.masking,
            dtype=dtype,
            scale=self.scale,
            softcap=self.softcap,
            slopes=self.slopes,
            sink=self.sink,
            dropout_p=self.dropout_p,
            device=device,
        )
        args.window_left, args.window_right, args.bottom_right = WINDOWS[self.window]
        return args


GRID = [
    SmallCase(*row)
    for row in pairwise(
        [
            [(4, 5), (5, 3), (1, 4)],
            [(3, 2), (1, 3)],
            ["grouped", "one_head", "batched", "five_dims_grouped"],
            [
                "none",
                "causal",
                "mask_full",
                "mask_rows",
                "bias_full",
                "bias_per_head",
                "bias_padding",
                "bias_one_per_head",
                "bias_mask_causal",
            ],
            list(WINDOWS),
            [None, -0.7],
            [None, 0.9],
            PER_HEAD,
            PER_HEAD,
            [0.0, 0.4],
            list(WANTED),
        ]
    )
]

# Everything at once.
EVERYTHING = SmallCase(
    masking="bias_mask_causal",
    window="window_bottom_right",
    scale=0.8,
    softcap=0.9,
    slopes="head",
    sink="full",
    dropout_p=0.4,
)


def functions(
    args: Arguments, wanted: str = "all", op: Any = None
) -> tuple[Function, Function, tuple[Tensor, ...]]:
    """The operator and plain PyTorch as functions of what is to be differentiated, and that.

    Both return output and logsumexp. Numerical differentiation can step neither from nor to an
    infinity: entries of the bias that are -inf are put in inside, -inf in logsumexp is replaced.
    """
    hidden = None if args.bias is None else args.bias == -torch.inf
    names = [name for name in args.named_leaves if name in WANTED[wanted]]
    leaves = {name: args.named_leaves[name].detach().clone() for name in names}
    if "bias" in leaves:
        leaves["bias"] = leaves["bias"].masked_fill(hidden, 0)

    def insert(values: tuple[Tensor, ...]) -> Arguments:
        given = dict(zip(names, values, strict=True))
        if "bias" in given:
            given["bias"] = given["bias"].masked_fill(hidden, -torch.inf)
        return replace(args, **given)

    def finite(results: Any) -> tuple[Tensor, Tensor]:
        output, logsumexp = results[:2]
        return output, logsumexp.masked_fill(logsumexp == -torch.inf, 0)

    def ours(*values: Tensor) -> tuple[Tensor, Tensor]:
        return finite(insert(values)(op))

    def dense(*values: Tensor) -> tuple[Tensor, Tensor]:
        return finite(forward(insert(values), lambda x: x))

    return ours, dense, tuple(leaves.values())


def scalar(function: Function) -> Function:
    """A number that depends on every result of the function, with derivatives of all orders."""

    def f(*values: Tensor) -> Tensor:
        results = function(*values)
        return sum((x * (x + 1 + i)).sin().sum() for i, x in enumerate(results))

    return f


def directions(leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn_like(x) for x in leaves)


class Recorder(TorchDispatchMode):
    """The operators that reach a device, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls.append((func.name().split(".")[0], args, kwargs))
        return func(*args, **kwargs)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    @property
    def fused(self) -> list[str]:
        """Our operators, in the order of their calls."""
        prefix = "torch_ext::attention_"
        return [name.removeprefix(prefix) for name in self.names if name.startswith(prefix)]

    def masks(self, name: str) -> list[tuple[bool, ...]]:
        """output_mask of each call of one of our operators."""
        return [
            tuple(kwargs["output_mask"]) if "output_mask" in kwargs else ()
            for called, _, kwargs in self.calls
            if called == f"torch_ext::attention_{name}"
        ]
