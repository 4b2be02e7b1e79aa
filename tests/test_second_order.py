"""attention_second_order: accuracy for every cotangent and direction, only what is asked for."""

from __future__ import annotations

import pytest
import torch
from calls import LEAVES, SECOND, TANGENTS, cotangents, direction, second_order
from cases import ALL_OPTIONS, DTYPES, LAYOUTS, PER_HEAD, arguments, arrange
from compare import assert_bitwise_equal, check

RESULTS = (*SECOND, *TANGENTS)

# test_grid.py has everything at once. Each of these checks attention_tangent too.


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("moving", LEAVES)
@pytest.mark.parametrize("parts", ["output", "logsumexp"])
def test_one_cotangent_and_one_tangent(
    parts: str, moving: str, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments((70, 101), (24, 40), dtype=dtype, **ALL_OPTIONS, device=device)
    go, gl = cotangents(args)
    chosen = (go, None) if parts == "output" else (None, gl)
    check(args, *chosen, {moving: direction(args)[moving]})


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("still", LEAVES)
def test_all_inputs_move_but_one(still: str, dtype: torch.dtype, device: torch.device) -> None:
    args = arguments((70, 101), (24, 40), dtype=dtype, **ALL_OPTIONS, device=device)
    moving = direction(args)
    del moving[still]
    check(args, *cotangents(args), moving)


WANTED = [*((x,) for x in RESULTS), SECOND, TANGENTS, ("second_query", "output_tangent"), ()]


@pytest.mark.parametrize("wanted", WANTED, ids="+".join)
def test_only_what_is_asked_for(wanted: tuple[str, ...], device: torch.device) -> None:
    """The others are undefined, and those that are there have the same bits without them."""
    args = arguments((70, 101), **ALL_OPTIONS, device=device)
    given = (*cotangents(args), direction(args))
    every = second_order(args, *given)
    got = second_order(args, *given, output_mask=[name in wanted for name in RESULTS])
    for name, a, b in zip(RESULTS, got, every, strict=True):
        assert (a is not None) == (name in wanted), name
        if name in wanted:
            assert_bitwise_equal(name, a, b)


def test_what_is_absent_has_no_gradient(device: torch.device) -> None:
    args = arguments(device=device)
    got = second_order(args, *cotangents(args), direction(args))
    present = [name for name, x in zip(RESULTS, got, strict=True) if x is not None]
    assert present == ["second_query", "second_key", "second_value", *TANGENTS]


@pytest.mark.parametrize("absent", ["direction", "cotangents", "both"])
def test_without_direction_or_cotangents(absent: str, device: torch.device) -> None:
    """Gradients of zero are zero; tangents need a direction alone."""
    args = arguments((70, 101), **ALL_OPTIONS, device=device)
    grads, moving = cotangents(args), direction(args)
    if absent != "direction":
        grads = (None, None)
    if absent != "cotangents":
        moving = {}
    got = dict(zip(RESULTS, second_order(args, *grads, moving), strict=True))
    for name, x in args.named_leaves.items():
        grad = got[f"second_{name}"]
        assert grad.shape == x.shape and grad.dtype == x.dtype and (grad == 0).all(), name
    for name, like in zip(TANGENTS, args(), strict=False):
        assert got[name].shape == like.shape and got[name].dtype == like.dtype
        assert (got[name] == 0).all() == (absent != "cotangents")


@pytest.mark.parametrize("name", LEAVES)
def test_an_absent_tangent_is_zero(name: str, device: torch.device) -> None:
    args = arguments((70, 101), dtype=torch.float64, **ALL_OPTIONS, device=device)
    grads, moving = cotangents(args), direction(args)
    moving[name] = torch.zeros_like(moving[name])
    expected = second_order(args, *grads, moving)
    del moving[name]
    for result, a, b in zip(RESULTS, second_order(args, *grads, moving), expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, r=result: f"{r}: {m}")


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x != "expanded"])
def test_layouts(layout: str, device: torch.device) -> None:
    """Everything may lie in memory as it likes; values are all that counts."""
    args = arguments((65, 130), (24, 24), "grouped", masking="bias_full", device=device)
    (go, gl), moving = cotangents(args), direction(args)
    expected = second_order(args, go, gl, moving)
    args.query, args.key, args.value = (arrange(x, layout) for x in args.tensors)
    moved = {name: arrange(x, layout) for name, x in moving.items()}
    got = second_order(args, arrange(go, layout), arrange(gl, layout), moved)
    for name, a, b in zip(RESULTS, got, expected, strict=True):
        if b is not None:
            assert_bitwise_equal(name, a, b)


@pytest.mark.parametrize("layout", ["contiguous", "heads_inside", "transposed"])
def test_results_are_laid_out_like_what_they_belong_to(layout: str, device: torch.device) -> None:
    args = arguments((5, 6), (8, 4), layout=layout, device=device)
    got = second_order(args, *cotangents(args), direction(args))
    for grad, x in zip(got[:3] + got[6:], (*args.tensors, *args()[:2]), strict=True):
        assert grad.stride() == x.stride()


@pytest.mark.parametrize("over", [x for x in PER_HEAD if x != "absent"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_float32_options_are_float32(
    over: str, dtype: torch.dtype, device: torch.device
) -> None:
    choices = {"masking": "bias_per_head", "slopes": over, "sink": over, "is_wide": True}
    args = arguments((9, 11), dtype=dtype, **choices, device=device)
    got = second_order(args, *cotangents(args), direction(args))
    for name, grad in zip(LEAVES, got, strict=False):
        x = getattr(args, name)
        assert grad.dtype == x.dtype and grad.shape == x.shape and grad.abs().max() > 0, name
    assert got[3].dtype == torch.float32
