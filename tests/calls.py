"""Arguments of one call, everything attention yields, and the operators called with the first to
give the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import torch_ext

# What can be differentiated, in the order of all operators.
LEAVES = ("query", "key", "value", "bias", "slopes", "sink")

# In the order of the schemas.
OPTIONS = (
    "mask", "bias", "is_causal", "window_left", "window_right", "bottom_right", "scale", "softcap",
    "slopes", "sink", "dropout_p", "seed",
)  # fmt: skip


@dataclass
class Arguments:
    """Arguments of one call."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    bias: Tensor | None = None
    is_causal: bool = False
    window_left: int | None = None
    window_right: int | None = None
    bottom_right: bool = False
    scale: float | None = None
    softcap: float | None = None
    slopes: Tensor | None = None
    sink: Tensor | None = None
    dropout_p: float = 0.0
    seed: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    @property
    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OPTIONS}

    @property
    def named_leaves(self) -> dict[str, Tensor]:
        """What can be differentiated: query, key, value and, where there are, the others."""
        return {x: getattr(self, x) for x in LEAVES if getattr(self, x) is not None}

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.named_leaves.values())

    @property
    def wide_dtype(self) -> torch.dtype:
        """Of logsumexp."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    def requires_grad(self) -> Arguments:
        """The same tensors, in the same memory, as leaves of a new graph."""
        return replace(
            self, **{n: x.detach().requires_grad_() for n, x in self.named_leaves.items()}
        )

    def __call__(self, op: Any = None) -> Any:
        """Calls an operator, `torch_ext::attention_forward` unless told otherwise."""
        return (op or torch.ops.torch_ext.attention_forward)(*self.tensors, **self.options)


@dataclass
class Results:
    """Everything attention yields. None: not computed.

    Shapes: output and its tangent (…, H, N, E), logsumexp and its tangent (…, H, N), gradients as
    their inputs. `second_x` is the gradient of <grad_output, output_tangent> + <grad_logsumexp,
    logsumexp_tangent> with respect to x.

    `terms`: the oracle's largest terms of results that are sums of differences, see reference.py.
    """

    output: Tensor | None = None
    logsumexp: Tensor | None = None
    grad_query: Tensor | None = None
    grad_key: Tensor | None = None
    grad_value: Tensor | None = None
    grad_bias: Tensor | None = None
    grad_slopes: Tensor | None = None
    grad_sink: Tensor | None = None
    output_tangent: Tensor | None = None
    logsumexp_tangent: Tensor | None = None
    second_query: Tensor | None = None
    second_key: Tensor | None = None
    second_value: Tensor | None = None
    second_bias: Tensor | None = None
    second_slopes: Tensor | None = None
    second_sink: Tensor | None = None
    terms: dict[str, float] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that are there."""
        return {x: getattr(self, x) for x in TENSORS if getattr(self, x) is not None}


GRADIENTS = tuple(f"grad_{x}" for x in LEAVES)
TANGENTS = ("output_tangent", "logsumexp_tangent")
SECOND = tuple(f"second_{x}" for x in LEAVES)
TENSORS = ("output", "logsumexp", *GRADIENTS, *TANGENTS, *SECOND)


def cotangents(args: Arguments) -> tuple[Tensor, Tensor]:
    """Random gradients of output and logsumexp, that of output laid out like the query."""
    lead, columns = args.query.shape[:-1], args.value.shape[-1]
    device = args.query.device
    go = torch.randn(*lead, columns, device=device).to(args.query.dtype)
    gl = torch.randn(lead, device=device).to(args.wide_dtype)
    return go if args.query.is_contiguous() else go.mT.contiguous().mT, gl


def direction(args: Arguments) -> dict[str, Tensor]:
    """A random tangent of everything that can be differentiated, laid out like it."""
    return {
        name: torch.empty_like(x).copy_(torch.randn(x.shape, device=x.device))
        for name, x in args.named_leaves.items()
    }


def saved(args: Arguments) -> tuple[Tensor, ...]:
    """What the derivatives need of the forward: its tensors and its results."""
    return *args.tensors, *args()


def backward(
    args: Arguments, grad_output: Tensor | None, grad_logsumexp: Tensor | None, **more: Any
) -> tuple[Tensor | None, ...]:
    """Calls `attention_backward`."""
    op = torch.ops.torch_ext.attention_backward
    return op(grad_output, grad_logsumexp, *saved(args), **args.options, **more)


def tangent(args: Arguments, direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Calls `attention_tangent`."""
    tangents = [direction.get(name) for name in LEAVES]
    return torch.ops.torch_ext.attention_tangent(*tangents, *saved(args), **args.options)


def second_order(
    args: Arguments,
    grad_output: Tensor | None,
    grad_logsumexp: Tensor | None,
    direction: dict[str, Tensor],
    **more: Any,
) -> tuple[Tensor | None, ...]:
    """Calls `attention_second_order`."""
    op, tangents = torch.ops.torch_ext.attention_second_order, [direction.get(x) for x in LEAVES]
    return op(grad_output, grad_logsumexp, *tangents, *saved(args), **args.options, **more)


def takes_subnormals_for_zero(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether forward and backward multiply bfloat16 with AVX-512 BF16, which does."""
    on_cpu = device.type == "cpu" and torch_ext.cpu_implementation() == "avx512_bf16"
    return on_cpu and dtype == torch.bfloat16


def operator_results(
    args: Arguments,
    grad_output: Tensor | None = None,
    grad_logsumexp: Tensor | None = None,
    direction: dict[str, Tensor] | None = None,
) -> Results:
    """Runs every operator there is something for.

    The tangents come from `attention_tangent` where there is no cotangent, otherwise from
    `attention_second_order`.
    """
    output, logsumexp, _ = args()
    results = Results(output, logsumexp)
    has_cotangent = grad_output is not None or grad_logsumexp is not None
    if has_cotangent:
        gradients = backward(args, grad_output, grad_logsumexp)
        results = replace(results, **dict(zip(GRADIENTS, gradients, strict=True)))
    if direction is not None:
        names = (*SECOND, *TANGENTS) if has_cotangent else TANGENTS
        values = (
            second_order(args, grad_output, grad_logsumexp, direction)
            if has_cotangent
            else tangent(args, direction)
        )
        results = replace(results, **dict(zip(names, values, strict=True)))
    return results
