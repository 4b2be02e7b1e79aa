"""vmap of each operator: the bits of a loop, from one call of the same operator, without copies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._vmap_internals import _vmap as legacy_vmap  # is_grads_batched and gradcheck use it
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("on_device")]

Shape = tuple[int, ...]
ops = torch.ops.torch_ext

B = 3  # size of the mapped dimension
N, M, D, E = 5, 6, 4, 2

# Leading dimensions of query, and of key and value.
LEADING: dict[str, tuple[Shape, Shape]] = {
    "one_head": ((), ()),
    "heads": ((4,), (4,)),
    "grouped": ((2, 4), (2, 2)),
    "five_dims": ((2, 1, 4), (2, 1, 1)),
}

INPUTS = ["query", "key", "value"]
OPTIONS = ["mask", "bias", "slopes", "sink", "seed"]
SAVED = [*INPUTS, "output", "logsumexp", "logsumexp_residual"]
GRADIENTS = ["grad_output", "grad_logsumexp"]
TANGENTS = [f"{x}_tangent" for x in (*INPUTS, "bias", "slopes", "sink")]
TENSORS = {
    "attention_forward": [*INPUTS, *OPTIONS],
    "attention_backward": [*GRADIENTS, *SAVED, *OPTIONS],
    "attention_tangent": [*TANGENTS, *SAVED, *OPTIONS],
    "attention_second_order": [*GRADIENTS, *TANGENTS, *SAVED, *OPTIONS],
}
NUMBERS = {"window_left": 4, "bottom_right": True, "scale": 0.4, "softcap": 2.0, "dropout_p": 0.3}

every_operator = pytest.mark.parametrize("operator", TENSORS)
every_leading = pytest.mark.parametrize("leading", LEADING)
every_vmap = pytest.mark.parametrize("vmap", [torch.vmap, legacy_vmap], ids=["vmap", "legacy"])


def shapes_of(operator: str, leading: str, **changed: Shape) -> dict[str, Shape]:
    """Shapes of all tensors of one call, without mapped dimensions."""
    lead, kv_lead = LEADING[leading]
    output, rows = (*lead, N, E), (*lead, N)
    shapes: dict[str, Shape] = {
        "query": (*lead, N, D), "key": (*kv_lead, M, D), "value": (*kv_lead, M, E),
        "output": output, "logsumexp": rows, "logsumexp_residual": rows,
        "grad_output": output, "grad_logsumexp": rows,
        "mask": (N, M), "bias": (*lead[-1:], N, M), "slopes": lead[-1:], "sink": lead[-1:],
        "seed": lead[:-1], **changed,
    }  # fmt: skip
    shapes |= {name: shapes[name.removesuffix("_tangent")] for name in TANGENTS}
    return {name: shapes[name] for name in TENSORS[operator]}


def random(name: str, shape: Sequence[int]) -> Tensor:
    if name == "seed":
        return torch.randint(2**63 - 1, tuple(shape))
    x = torch.randn(shape)
    if name == "mask":
        return x < 1
    return {"logsumexp": 3 + 0.1 * x, "logsumexp_residual": 1e-7 * x}.get(name, x)


def random_mapped(name: str, shape: Shape, *dims: int | None) -> Tensor:
    """Has a mapped dimension of size B at each of `dims` that is not None; the innermost first."""
    mapped = [dim for dim in dims if dim is not None]
    x = random(name, (B,) * len(mapped) + shape)
    for count, dim in enumerate(mapped):
        x = x.movedim(len(mapped) - 1 - count, dim if dim >= 0 else x.dim() + dim)
    return x


def flat_call(operator: str, names: Sequence[str], **numbers: Any) -> Callable[..., Any]:
    """The operator with tensors in the order of `names`, without the results that are undefined."""

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = getattr(ops, operator)(**dict(zip(names, tensors, strict=True)), **numbers)
        results = (results,) if isinstance(results, Tensor) else results
        return tuple(x for x in results if x is not None)

    return call


def select(tensors: Sequence[Tensor], dims: Sequence[int | None], index: int) -> list[Tensor]:
    return [x if d is None else x.select(d, index) for x, d in zip(tensors, dims, strict=True)]


def assert_equal(actual: Any, expected: Any) -> None:
    """The same bits, shapes and types."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def loop(function: Callable[..., Any], in_dims: Sequence[int | None]) -> Callable[..., Any]:
    """What vmap is defined by."""

    def mapped(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = [function(*select(tensors, in_dims, i)) for i in range(B)]
        return tuple(torch.stack(x) for x in zip(*results, strict=True))

    return mapped


def assert_like_loop(
    operator: str,
    shapes: dict[str, Shape],
    dims: dict[str, int],
    vmap: Any = torch.vmap,
    **numbers: Any,
) -> None:
    in_dims = tuple(dims.get(name) for name in shapes)
    tensors = [random_mapped(n, s, d) for (n, s), d in zip(shapes.items(), in_dims, strict=True)]
    call = flat_call(operator, list(shapes), **(NUMBERS | numbers))
    assert_equal(vmap(call, in_dims)(*tensors), loop(call, in_dims)(*tensors))


def every_dim(shapes: dict[str, Shape]) -> dict[str, int]:
    """Another mapped dimension for each tensor in turn: the first, the last, …"""
    return {n: i % (1 + len(shape)) for i, (n, shape) in enumerate(shapes.items())}


# ---- Which arguments are mapped, and along which dimension ---------------------------------------


@every_vmap
@every_operator
@every_leading
def test_one_argument_or_all(operator: str, leading: str, vmap: Any) -> None:
    shapes = shapes_of(operator, leading)
    dims = every_dim(shapes)
    for name in shapes:
        assert_like_loop(operator, shapes, {name: dims[name]}, vmap)
        assert_like_loop(operator, shapes, {n: d for n, d in dims.items() if n != name}, vmap)
    assert_like_loop(operator, shapes, dims, vmap)
    assert_like_loop(operator, shapes, dict.fromkeys(shapes, 0), vmap)


@every_operator
def test_pairs_of_arguments(operator: str) -> None:
    shapes = shapes_of(operator, "grouped")
    dims = every_dim(shapes)
    for a, b in itertools.combinations(shapes, 2):
        assert_like_loop(operator, shapes, {a: dims[a], b: dims[b]})


@every_operator
def test_dimensions_counted_from_the_end(operator: str) -> None:
    shapes = shapes_of(operator, "heads")
    assert_like_loop(operator, shapes, dict.fromkeys(shapes, -1))
    assert_like_loop(operator, shapes, dict.fromkeys(INPUTS, -2))


@every_operator
@pytest.mark.parametrize("leading", ["one_head", "grouped"])
def test_only_what_is_needed(operator: str, leading: str) -> None:
    """No options, absent gradients and tangents: undefined results stay undefined."""
    shapes = shapes_of(operator, leading)
    absent = [n for n in (*TANGENTS[1:], "grad_logsumexp") if n in shapes]
    shapes = {n: s for n, s in shapes.items() if n not in (*OPTIONS, *absent)}
    masks = {"attention_backward": 6, "attention_second_order": 8}
    some = (
        {"output_mask": [i % 2 == 0 for i in range(masks[operator])]} if operator in masks else {}
    )
    off = {"window_left": None, "bottom_right": False, "softcap": None, "dropout_p": 0.0}
    numbers = {**off, **some, **dict.fromkeys(absent)}
    assert_like_loop(operator, shapes, dict.fromkeys(INPUTS, 1), **numbers, is_causal=True)


@every_vmap
@every_operator
@every_leading
def test_nested(operator: str, leading: str, vmap: Any) -> None:
    """Tensors mapped by neither, the inner, the outer, and both; in turn for each tensor."""
    shapes = shapes_of(operator, leading)
    kinds: list[tuple[int | None, int | None]] = [(None, None), (0, None), (None, 0), (0, 1)]
    call = flat_call(operator, list(shapes), **NUMBERS)
    for shift in range(4):
        chosen = [kinds[(i + shift) % 4] for i in range(len(shapes))]
        inner, outer = zip(*chosen, strict=True)
        tensors = [
            random_mapped(n, shapes[n], *dims) for n, dims in zip(shapes, chosen, strict=True)
        ]
        actual = vmap(vmap(call, inner), outer)(*tensors)
        assert_equal(actual, loop(loop(call, inner), outer)(*tensors))


# ---- What broadcasts -----------------------------------------------------------------------------

SCORES_LIKE: list[Shape] = [
    (), (1,), (M,), (N, 1), (N, M), (1, 1, 1), (4, 1, 1), (4, N, M), (1, 4, N, M), (2, 1, 1, M),
    (2, 4, N, M),
]  # fmt: skip
HEADS_LIKE: list[Shape] = [(), (1,), (4,), (1, 4), (2, 1), (2, 4)]
BROADCAST = [("mask", x) for x in SCORES_LIKE]
BROADCAST += [("bias", x) for x in SCORES_LIKE]
BROADCAST += [(name, x) for name in ("slopes", "sink") for x in HEADS_LIKE]
BROADCAST += [("seed", x) for x in [(), (1,), (2,)]]


@every_operator
@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_every_shape(operator: str, name: str) -> None:
    """Mapped, and not mapped but with a gradient for each sample."""
    for shape in (x for n, x in BROADCAST if n == name):
        shapes = shapes_of(operator, "grouped", **{name: shape})
        for mapped in ([name], [name, *INPUTS], INPUTS, [f"{name}_tangent"]):
            if set(mapped) <= set(shapes):
                assert_like_loop(operator, shapes, {n: len(shapes[n]) // 2 for n in mapped})


@every_operator
@pytest.mark.parametrize("name", ["bias", "slopes", "sink"])
def test_options_of_one_head(operator: str, name: str) -> None:
    candidates: list[Shape] = [(), (1,)] if name != "bias" else [(), (M,), (N, 1), (N, M)]
    for shape in candidates:
        shapes = shapes_of(operator, "one_head", **{name: shape})
        for mapped in ([name], INPUTS):
            assert_like_loop(operator, shapes, dict.fromkeys(mapped, 0))


def test_dropout_mask() -> None:
    for shape in [(), (2,), (2, 1)]:
        seed = random_mapped("seed", shape, len(shape))
        call = flat_call("_dropout_mask", ["seed"], heads=4, queries=N, keys=M, dropout_p=0.4)
        for vmap in (torch.vmap, legacy_vmap):
            assert_equal(vmap(call, (len(shape),))(seed), loop(call, [len(shape)])(seed))


# ---- How ----------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """What runs below vmap."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func.overloadpacket.__name__, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


VIEWS = {"movedim", "permute", "transpose", "unsqueeze", "expand", "select", "alias"}


@every_vmap
@every_operator
@pytest.mark.parametrize("leading", ["one_head", "grouped"])
def test_one_call_and_no_copies(operator: str, leading: str, vmap: Any) -> None:
    shapes = shapes_of(operator, leading)
    in_dims = tuple(len(s) if n == "query" else None for n, s in shapes.items())
    tensors = [random_mapped(n, s, d) for (n, s), d in zip(shapes.items(), in_dims, strict=True)]
    with Recorder() as recorder:
        vmap(flat_call(operator, list(shapes), **NUMBERS), in_dims)(*tensors)
    assert {name for name, *_ in recorder.calls} <= {operator, *VIEWS}
    ((_, args, kwargs),) = [call for call in recorder.calls if call[0] == operator]
    given = {x.data_ptr(): x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)}
    by_name = {name: given.pop(x.data_ptr()) for name, x in zip(shapes, tensors, strict=True)}
    assert not given
    assert by_name["key"].shape[0] == B and by_name["key"].stride(0) == 0
    assert by_name["mask"].shape == shapes["mask"]
