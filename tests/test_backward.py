"""Gradients: accuracy against the oracle, shapes, dtypes and layouts, only those asked for."""

from __future__ import annotations

import itertools

import pytest
import torch
from calls import LEAVES, Arguments, backward, cotangents
from cases import ALL_OPTIONS, DTYPES, MASKINGS, PER_HEAD, arguments
from compare import assert_bitwise_equal, check


def check_backward(args: Arguments, *, output: bool = True, logsumexp: bool = True) -> None:
    go, gl = cotangents(args)
    check(args, go if output else None, gl if logsumexp else None)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("parts", ["output", "logsumexp"])
def test_output_or_logsumexp_alone(parts: str, dtype: torch.dtype, device: torch.device) -> None:
    args = arguments(
        (21, 34), (40, 24), "grouped", masking="bias_per_head", dtype=dtype, device=device
    )
    check_backward(args, output=parts == "output", logsumexp=parts == "logsumexp")


def test_gradient_of_logsumexp_does_not_reach_value(device: torch.device) -> None:
    args = arguments(dtype=torch.float64, device=device)
    assert (backward(args, None, cotangents(args)[1])[2] == 0).all()


@pytest.mark.parametrize("wanted", [*itertools.combinations(range(6), 1), (0, 2), (1, 3, 5), ()])
def test_only_the_gradients_asked_for(wanted: tuple[int, ...], device: torch.device) -> None:
    """The others are undefined, and those that are there have the same bits without them."""
    args = arguments((70, 101), **ALL_OPTIONS, device=device)
    grads = cotangents(args)
    every = backward(args, *grads)
    got = backward(args, *grads, output_mask=[i in wanted for i in range(6)])
    for i, name in enumerate(LEAVES):
        assert (got[i] is not None) == (i in wanted), name
        if i in wanted:
            assert_bitwise_equal(name, got[i], every[i])


def test_without_any_cotangent_gradients_are_zero(device: torch.device) -> None:
    args = arguments(**ALL_OPTIONS, device=device)
    for x, grad in zip(args.leaves, backward(args, None, None), strict=True):
        assert grad.shape == x.shape and grad.dtype == x.dtype and (grad == 0).all()


def test_what_is_absent_has_no_gradient(device: torch.device) -> None:
    args = arguments(device=device)
    grads = backward(args, *cotangents(args))
    assert [x is not None for x in grads] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("masking", [x for x in MASKINGS if x.startswith("bias")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_of_a_float32_bias_is_float32(
    masking: str, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments((9, 11), masking=masking, dtype=dtype, is_wide=True, device=device)
    grad = backward(args, torch.ones_like(args.query), None)[3]
    assert grad.dtype == torch.float32 and grad.shape == args.bias.shape and grad.is_contiguous()
    assert grad.abs().max() > 0 or masking == "bias_rows" or masking == "bias_one_per_head"


def test_bias_of_no_dimensions(device: torch.device) -> None:
    args = arguments(dtype=torch.float64, device=device)
    args.bias = torch.tensor(0.5, dtype=torch.float64, device=device)
    check_backward(args)


@pytest.mark.parametrize("name", ["slopes", "sink"])
@pytest.mark.parametrize("over", [x for x in PER_HEAD if x != "absent"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_per_head_are_like_their_inputs(
    name: str, over: str, dtype: torch.dtype, device: torch.device
) -> None:
    for is_wide in (False, True):
        args = arguments((9, 11), dtype=dtype, is_wide=is_wide, **{name: over}, device=device)
        grad = backward(args, *cotangents(args))[LEAVES.index(name)]
        assert grad.dtype == (torch.float32 if is_wide else dtype) and grad.abs().max() > 0
        assert grad.shape == getattr(args, name).shape and grad.is_contiguous()


@pytest.mark.parametrize("layout", ["contiguous", "heads_inside", "transposed"])
def test_gradients_keep_the_order_of_dimensions_in_memory(
    layout: str, device: torch.device
) -> None:
    args = arguments((5, 6), (8, 4), layout=layout, device=device)
    for x, grad in zip(args.tensors, backward(args, *cotangents(args)), strict=False):
        assert grad.stride() == x.stride()


def test_gradient_of_an_expanded_output(device: torch.device) -> None:
    """sum() sends back a cotangent whose strides are all zero."""
    args = arguments((17, 33), dtype=torch.float64, device=device)
    ones = torch.ones_like(args()[0])
    expanded = torch.ones((), dtype=ones.dtype, device=device).expand(ones.shape)
    for a, b in zip(backward(args, expanded, None)[:3], backward(args, ones, None), strict=False):
        assert_bitwise_equal("gradient", a, b)
