"""How bad input is made and its error read; the calls of all operators, from valid arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from calls import LEAVES, Arguments
from cases import arguments

ops = torch.ops.torch_ext

ERRORS = (RuntimeError, TypeError, ValueError, NotImplementedError)

GRADS = ["grad_output", "grad_logsumexp"]
TANGENTS = [f"{name}_tangent" for name in LEAVES]
SAVED = ["query", "key", "value", "output", "logsumexp", "logsumexp_residual"]

# The tensors that each operator takes by position, in this order.
POSITIONAL = {
    "attention": SAVED[:3],
    "attention_forward": SAVED[:3],
    "attention_backward": [*GRADS, *SAVED],
    "attention_tangent": [*TANGENTS, *SAVED],
    "attention_second_order": [*GRADS, *TANGENTS, *SAVED],
    "attention_weights": SAVED[:2],
}
DERIVATIVES = ["attention_backward", "attention_tangent", "attention_second_order"]
NOT_OF_WEIGHTS = ("dropout_p", "seed")


def base(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    leading: str = "grouped",
    **more: Any,
) -> Arguments:
    """query (2, 4, 5, 8), key (2, 2, 7, 8), value (2, 2, 7, 6)."""
    return arguments((5, 7), (8, 6), leading, dtype=dtype, device=device, **more)


def changed(**parts: Any) -> Callable[[Arguments], Arguments]:
    """Replaces arguments: a shape stands for zeros, a dtype for the same tensor cast to it."""

    def change(args: Arguments) -> Arguments:
        for name, part in parts.items():
            old = getattr(args, name)
            device = args.query.device
            if isinstance(part, torch.dtype):
                part = old.to(part)
            elif isinstance(part, tuple) and part and isinstance(part[-1], torch.dtype):
                part = torch.zeros(part[:-1], dtype=part[-1], device=device)
            elif isinstance(part, tuple):
                part = torch.zeros(part, device=device)
            setattr(args, name, part)
        return args

    return change


def positional(operator: str, args: Arguments) -> dict[str, Any]:
    """Valid positional arguments of an operator by name; tangents of what is absent are None."""
    results = args()
    tensors: dict[str, Any] = dict(zip(SAVED, (*args.tensors, *results), strict=True))
    tensors |= dict(zip(GRADS, map(torch.ones_like, results), strict=False))
    leaves = args.named_leaves
    tensors |= {
        f"{name}_tangent": torch.ones_like(leaves[name]) if name in leaves else None
        for name in LEAVES
    }
    return {name: tensors[name] for name in POSITIONAL[operator]}


def call(operator: str, tensors: dict[str, Any], options: dict[str, Any]) -> Any:
    """Calls an operator; `attention_weights` without the options of dropout."""
    if operator == "attention_weights":
        options = {name: x for name, x in options.items() if name not in NOT_OF_WEIGHTS}
    return getattr(ops, operator)(*tensors.values(), **options)


def message(function: Callable[[], Any]) -> str:
    """The message of the error that the call must raise."""
    with pytest.raises(ERRORS) as error:
        function()
    return str(error.value).split("\nException raised from")[0]


def assert_words(text: str, *words: str) -> None:
    """The message contains them, and what was expected."""
    for word in ("expected", *words):
        assert word in text, f"{word!r} is not in: {text}"
