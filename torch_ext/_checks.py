"""Types of arguments. The operators' schemas take 0.3 for True, and a learned number for a number.

TorchScript checks types itself: its functions leave this module out.
"""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]

__all__ = [
    "BOOL",
    "DTYPE_OR_NONE",
    "INTEGER",
    "INTEGER_OR_NONE",
    "NUMBER",
    "NUMBER_OR_NONE",
    "TENSOR",
    "TENSOR_OR_NONE",
    "check_call",
    "check_type",
    "check_types",
    "described",
    "is_scripting",
    "numbers_of_numpy",
]


class Kind(NamedTuple):
    """What an argument may be."""

    expected: str
    fits: Callable[[object], bool]


def _is_bool(x: object) -> bool:
    is_numpys = type(x).__module__ == "numpy" and type(x).__name__ in ("bool", "bool_")
    return isinstance(x, (bool, torch.SymBool)) or is_numpys or _stands_in(x)


def _is_integer(x: object) -> bool:
    if isinstance(x, Integral):
        return not isinstance(x, bool) and -(2**63) <= int(x) < 2**63
    return isinstance(x, torch.SymInt) or _is_traced_size(x) or _stands_in(x)


def _is_number(x: object) -> bool:
    if isinstance(x, Real):
        return not isinstance(x, bool)
    return isinstance(x, (torch.SymInt, torch.SymFloat)) or _is_traced_size(x) or _stands_in(x)


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor) or _stands_in(x)


def _is_traced_size(x: object) -> bool:
    """Under torch.jit.trace sizes are tensors, and so is what is calculated from them."""
    if not isinstance(x, Tensor) or not is_tracing():  # type: ignore[no-untyped-call]
        return False
    return x.dim() == 0 and not x.requires_grad


def _stands_in(x: object) -> bool:
    """Whether x is one of those that torch.fx and others let through a function to record it."""
    return hasattr(type(x), "__torch_function__") and not isinstance(x, Tensor)


BOOL = Kind("a bool", _is_bool)
INTEGER = Kind("an integer of 64 bits", _is_integer)
NUMBER = Kind("a number", _is_number)
TENSOR = Kind("a tensor", _is_tensor)


def _or_none(kind: Kind) -> Kind:
    return Kind(f"{kind.expected} or None", lambda x: x is None or kind.fits(x))


INTEGER_OR_NONE, NUMBER_OR_NONE, TENSOR_OR_NONE = map(_or_none, (INTEGER, NUMBER, TENSOR))
DTYPE_OR_NONE = _or_none(Kind("a torch.dtype", lambda x: isinstance(x, torch.dtype)))

# What to do instead of passing a tensor.
_WAYS_OUT = {
    "scale": "; a tensor would get no gradient: multiply query by it and pass scale=1.0",
    "softcap": "; a tensor would get no gradient, and softcap has none",
    "offset": "; what differs from row to row belongs into positions",
}


def check_type(function: str, kind: Kind, name: str, value: object) -> None:
    """Raises a TypeError that names the argument unless it is of this kind."""
    if not kind.fits(value):
        way_out = _WAYS_OUT.get(name, "") if isinstance(value, Tensor) else ""
        raise TypeError(
            f"{function}: expected {name} to be {kind.expected}, "
            f"but got {described(value)}{way_out}"
        )


def check_types(function: str, kind: Kind, **arguments: object) -> None:
    """The same for several arguments of one kind."""
    for name, value in arguments.items():
        check_type(function, kind, name, value)


def described(value: object) -> str:
    """For messages: the type, and the value where that is short."""
    if value is None:
        return "None"
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"{kind} of shape {list(value.shape)}"
    return f"{kind} {value!r:.40}" if isinstance(value, (Real, complex, str)) else kind


def numbers_of_numpy(*numbers: Any) -> tuple[Any, ...]:
    """The same numbers; those of numpy, which torch.compile takes for arrays, as Python's."""
    if not torch.compiler.is_compiling():
        return numbers
    known = (int, float, str, Tensor, torch.SymInt, torch.SymFloat)
    return tuple(x if x is None or isinstance(x, known) else float(x) for x in numbers)


_BOOLS = frozenset((bool,))
_INTEGERS = frozenset((int, type(None)))
_NUMBERS = frozenset((int, float, type(None)))


def check_call(
    function: str,
    inputs: tuple[object, ...],
    mask: object,
    bias: object,
    is_causal: object,
    window_left: object,
    window_right: object,
    bottom_right: object,
    scale: object,
    softcap: object,
    slopes: object,
    sink: object,
    dropout_p: object = 0.0,
    seed: object = None,
) -> None:
    """Raises a TypeError unless query, key, value (`inputs`) and the options are what they should.

    Looks at what is usual first: small problems notice how long this takes.
    """
    is_usual = (
        type(is_causal) in _BOOLS
        and type(bottom_right) in _BOOLS
        and type(window_left) in _INTEGERS
        and type(window_right) in _INTEGERS
        and type(scale) in _NUMBERS
        and type(softcap) in _NUMBERS
        and type(dropout_p) in (float, int)
    )
    if not is_usual:
        check_types(function, BOOL, is_causal=is_causal, bottom_right=bottom_right)
        windows = {"window_left": window_left, "window_right": window_right}
        check_types(function, INTEGER_OR_NONE, **windows)
        check_types(function, NUMBER_OR_NONE, scale=scale, softcap=softcap)
        check_types(function, NUMBER, dropout_p=dropout_p)
    for x in inputs:
        if not isinstance(x, Tensor):
            named = dict(zip(("query", "key", "value"), inputs, strict=False))
            check_types(function, TENSOR, **named)
    for x in (mask, bias, slopes, sink, seed):
        if not (x is None or isinstance(x, Tensor)):
            tensors = {"mask": mask, "bias": bias, "slopes": slopes, "sink": sink, "seed": seed}
            check_types(function, TENSOR_OR_NONE, **tensors)
