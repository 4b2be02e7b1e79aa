"""The oracle against PyTorch's derivatives of the same function, neither of which runs a kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calls import Arguments, cotangents, direction
from cases import ALL_OPTIONS, CASES, Case, arguments
from plain import forward, plain
from reference import exact
from torch import Tensor
from torch.func import grad, jvp

SMALL = [replace(case, lengths=(9, 14), head_sizes=(4, 3), dtype=torch.float64) for case in CASES]


@pytest.mark.parametrize("case", SMALL[::6], ids=str)
def test_gradients_and_tangents_of_every_order(case: Case) -> None:
    args = case.arguments()
    given = dict(
        zip(("grad_output", "grad_logsumexp"), cotangents(args), strict=True),
        direction=direction(args),
    )
    expected = exact(*args.tensors, **args.options, **given)
    got = plain(*args.tensors, **args.options, **given)
    assert got.tensors.keys() == expected.tensors.keys()
    for name, x in got.tensors.items():
        torch.testing.assert_close(
            x,
            getattr(expected, name),
            rtol=1e-11,
            atol=1e-11,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_forward_mode_and_reverse_over_forward() -> None:
    """By torch.func, which shares nothing with what `plain` does."""
    args = arguments((9, 14), (4, 3), dtype=torch.float64, **ALL_OPTIONS)
    (go, gl), moving = cotangents(args), direction(args)
    names = tuple(args.named_leaves)

    def f(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        output, lse = forward(
            Arguments(**{**vars(args), **dict(zip(names, leaves, strict=True))}), lambda x: x
        )
        return output, lse

    def phi(*leaves: Tensor) -> Tensor:
        output_tangent, lse_tangent = jvp(f, leaves, tuple(moving.values()))[1]
        return (go * output_tangent).sum() + (gl * lse_tangent).sum()

    leaves = tuple(args.leaves)
    expected = exact(
        *args.tensors, **args.options, grad_output=go, grad_logsumexp=gl, direction=moving
    )
    output_tangent, lse_tangent = jvp(f, leaves, tuple(moving.values()))[1]
    torch.testing.assert_close(output_tangent, expected.output_tangent)
    torch.testing.assert_close(lse_tangent, expected.logsumexp_tangent)
    for name, x in zip(names, grad(phi, tuple(range(6)))(*leaves), strict=True):
        torch.testing.assert_close(x, getattr(expected, f"second_{name}"))
