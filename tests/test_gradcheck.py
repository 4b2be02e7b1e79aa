"""First and second derivatives of all options, in all modes, against numerical differentiation."""

from __future__ import annotations

import pytest
import torch
from differentiation import EVERYTHING, GRID, Function, SmallCase, functions
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp


def leaves_of(case: SmallCase, device: torch.device) -> tuple[Function, list[Tensor]]:
    ours, _, leaves = functions(case.arguments(device), case.wanted)
    if not leaves:
        pytest.skip("nothing that is wanted is there")
    return ours, [x.requires_grad_() for x in leaves]


@pytest.mark.parametrize("case", GRID, ids=str)
def test_first_derivatives(case: SmallCase, device: torch.device) -> None:
    """Reverse and forward mode."""
    ours, leaves = leaves_of(case, device)
    assert gradcheck(ours, leaves, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("case", GRID, ids=str)
def test_second_derivatives(case: SmallCase, device: torch.device) -> None:
    """Reverse over reverse and forward over reverse; what gets a cotangent varies with it."""
    ours, leaves = leaves_of(case, device)
    assert gradgradcheck(
        ours, leaves, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True
    )


@pytest.mark.parametrize("case", GRID, ids=str)
def test_gradients_of_tangents(case: SmallCase, device: torch.device) -> None:
    """Reverse over forward."""
    ours, leaves = leaves_of(case, device)
    tangents = [torch.randn_like(x).requires_grad_() for x in leaves]

    def tangent(*values: Tensor) -> tuple[Tensor, ...]:
        primals, direction = values[: len(leaves)], values[len(leaves) :]
        return jvp(ours, primals, direction)[1]

    assert gradcheck(tangent, [*leaves, *tangents], fast_mode=True)


SLOW = [
    SmallCase((2, 3), (2, 1)),
    SmallCase((3, 2), (1, 2), "multi_query", "bias_mask_causal", sink="head"),
    SmallCase((2, 3), (2, 1), "one_head", "mask_full", softcap=0.8, slopes="cell", dropout_p=0.4),
]


@pytest.mark.isa
@pytest.mark.parametrize("case", SLOW, ids=str)
def test_entry_by_entry(case: SmallCase, device: torch.device) -> None:
    ours, leaves = leaves_of(case, device)
    assert gradcheck(ours, leaves, check_forward_ad=True)
    assert gradgradcheck(ours, leaves, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("case", [SmallCase(), EVERYTHING], ids=["plain", "everything"])
def test_batches_of_gradients_and_tangents(case: SmallCase, device: torch.device) -> None:
    ours, leaves = leaves_of(case, device)
    assert gradcheck(
        ours,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
    )
    assert gradgradcheck(
        ours, leaves, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True
    )


@pytest.mark.isa
def test_across_tiles(device: torch.device) -> None:
    case = SmallCase((70, 140), (2, 3), "unbatched", "bias_causal", "window", sink="head")
    args = case.arguments(device)
    args.window_left, args.window_right = 80, None
    ours, _, leaves = functions(args)
    leaves = [x.requires_grad_() for x in leaves]
    assert gradcheck(ours, leaves, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(ours, leaves, check_fwd_over_rev=True, fast_mode=True)


def test_one_tensor_in_all_places(device: torch.device) -> None:
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, device=device, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return torch.ops.torch_ext.attention(x, x, x, is_causal=True, bias=x[..., :1])

    assert gradcheck(f, x, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, x, check_fwd_over_rev=True, fast_mode=True)


def test_batch_dimensions_that_broadcast(device: torch.device) -> None:
    shapes = [(2, 1, 2, 3, 4), (3, 1, 5, 4), (1, 1, 5, 2)]
    leaves = [
        torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes
    ]

    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.torch_ext.attention(q, k, v, is_causal=True)

    assert gradcheck(f, leaves, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(f, leaves, check_fwd_over_rev=True, fast_mode=True)
