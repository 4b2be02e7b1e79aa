"""attention_tangent: what is absent, linearity, layouts in memory."""

from __future__ import annotations

import pytest
import torch
from calls import LEAVES, TANGENTS, cotangents, direction, operator_results, tangent
from cases import ALL_OPTIONS, LAYOUTS, arguments, arrange
from compare import assert_bitwise_equal

# test_grid.py and test_second_order.py check its accuracy, along every direction.


def test_without_a_direction_tangents_are_zero(device: torch.device) -> None:
    args = arguments(**ALL_OPTIONS, device=device)
    for got, like in zip(tangent(args, {}), args(), strict=False):
        assert got.shape == like.shape and got.dtype == like.dtype and (got == 0).all()


@pytest.mark.parametrize("name", LEAVES)
def test_an_absent_tangent_is_zero(name: str, device: torch.device) -> None:
    args = arguments((70, 101), **ALL_OPTIONS, device=device)
    moving = direction(args)
    moving[name] = torch.zeros_like(moving[name])
    expected = tangent(args, moving)
    del moving[name]
    for result, a, b in zip(TANGENTS, tangent(args, moving), expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, r=result: f"{r}: {m}")


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x != "expanded"])
def test_layouts(layout: str, device: torch.device) -> None:
    """Tangents may lie in memory unlike what they are tangents of; values are all that counts."""
    args = arguments((65, 130), (24, 24), "grouped", masking="bias_full", device=device)
    moving = direction(args)
    expected = tangent(args, moving)
    moved = {name: arrange(x, layout) for name, x in moving.items()}
    for name, a, b in zip(TANGENTS, tangent(args, moved), expected, strict=True):
        assert_bitwise_equal(name, a, b)


@pytest.mark.parametrize("layout", ["contiguous", "heads_inside", "transposed"])
def test_the_tangent_is_laid_out_like_the_output(layout: str, device: torch.device) -> None:
    args = arguments((5, 6), (8, 4), layout=layout, device=device)
    for got, like in zip(tangent(args, direction(args)), args(), strict=False):
        assert got.stride() == like.stride()


def test_a_tangent_expanded_over_everything(device: torch.device) -> None:
    args = arguments((65, 130), (24, 24), "grouped", device=device)
    ones = {"query": torch.ones_like(args.query)}
    expanded = {"query": torch.ones(1, device=device).expand(args.query.shape)}
    for name, a, b in zip(TANGENTS, tangent(args, expanded), tangent(args, ones), strict=True):
        assert_bitwise_equal(name, a, b)


def test_the_tangent_is_linear_in_the_direction(device: torch.device) -> None:
    args = arguments((70, 101), dtype=torch.float64, **ALL_OPTIONS, device=device)
    a, b = direction(args), direction(args)
    both = {name: 2 * a[name] - 3 * b[name] for name in a}
    for x, y, xy in zip(tangent(args, a), tangent(args, b), tangent(args, both), strict=True):
        torch.testing.assert_close(xy, 2 * x - 3 * y, rtol=1e-10, atol=1e-10)


def test_the_same_as_in_the_second_order(device: torch.device) -> None:
    """The gradients of <grad_output, output_tangent> with respect to grad_output."""
    args = arguments((70, 101), dtype=torch.float64, **ALL_OPTIONS, device=device)
    moving = direction(args)
    alone = operator_results(args, direction=moving)
    with_gradients = operator_results(args, *cotangents(args), moving)
    for name in TANGENTS:
        torch.testing.assert_close(getattr(with_gradients, name), getattr(alone, name))
