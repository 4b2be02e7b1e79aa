"""torch.func: every composition of transformations gives what it gives for plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from differentiation import (
    EVERYTHING,
    GRID,
    Function,
    SmallCase,
    directions,
    functions,
    scalar,
)
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_leaves


def argnums(leaves: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(range(len(leaves)))


def assert_same(transformed: Function, ours: Function, dense: Function) -> None:
    """`transformed(function)` evaluates some derivative of a function."""
    torch.manual_seed(0)
    got = tree_leaves(transformed(ours))
    torch.manual_seed(0)
    expected = tree_leaves(transformed(dense))
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=[SmallCase(), EVERYTHING], ids=["plain", "everything"])
def case(request: pytest.FixtureRequest) -> SmallCase:
    return request.param


def test_grad(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device))
    assert_same(lambda f: grad(scalar(f), argnums(leaves))(*leaves), ours, dense)


def test_vjp(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device))

    def pull(f: Function) -> Any:
        results, pullback = vjp(f, *leaves)
        return results, pullback(tuple(torch.randn_like(x) for x in results))

    assert_same(pull, ours, dense)


def test_jvp(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device))
    assert_same(lambda f: jvp(f, leaves, directions(leaves)), ours, dense)


def test_linearize(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device))
    assert_same(lambda f: linearize(f, *leaves)[1](*directions(leaves)), ours, dense)


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
def test_jacobian(jacobian: Any, case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device))
    assert_same(lambda f: jacobian(f, argnums(leaves))(*leaves), ours, dense)


@pytest.mark.parametrize(
    "second", [hessian, lambda f, n: jacrev(jacrev(f, n), n)], ids=["forward", "reverse"]
)
def test_hessian(second: Any, case: SmallCase, device: torch.device) -> None:
    """Forward over reverse, reverse over reverse."""
    ours, dense, leaves = functions(case.arguments(device))
    assert_same(lambda f: second(scalar(f), argnums(leaves))(*leaves), ours, dense)


def test_grad_of_jvp(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device))

    def gradient(f: Function) -> Any:
        tangents = directions(leaves)
        return grad(lambda *x: jvp(scalar(f), x, tangents)[1], argnums(leaves))(*leaves)

    assert_same(gradient, ours, dense)


def test_jvp_of_grad(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device))
    assert_same(
        lambda f: jvp(grad(scalar(f), argnums(leaves)), leaves, directions(leaves)), ours, dense
    )


def test_vmap_of_hessian_vector_products(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device))

    def products(f: Function) -> Any:
        tangents = tuple(torch.randn(3, *x.shape, dtype=x.dtype, device=device) for x in leaves)
        return vmap(lambda *t: jvp(grad(scalar(f), argnums(leaves)), leaves, t)[1])(*tangents)

    assert_same(products, ours, dense)


# What is not fused: the dense composite.


@pytest.mark.parametrize("case", GRID[::3], ids=str)
def test_jvp_of_jvp(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device), case.wanted)
    if not leaves:
        pytest.skip("nothing that is wanted is there")

    def second(f: Function) -> Any:
        first, other = directions(leaves), directions(leaves)
        return jvp(lambda *x: jvp(f, x, first)[1], leaves, other)

    assert_same(second, ours, dense)


def along(mode: str, function: Function, direction: tuple[Tensor, ...]) -> Function:
    """The directional derivative of a scalar function, found in forward or in reverse mode."""
    if mode == "forward":
        return lambda *x: jvp(function, x, direction)[1]

    def derivative(*x: Tensor) -> Tensor:
        gradients = grad(function, argnums(x))(*x)
        return sum((g * t).sum() for g, t in zip(gradients, direction, strict=True))

    return derivative


@pytest.mark.parametrize("case", GRID[1::3], ids=str)
def test_third_derivatives(case: SmallCase, device: torch.device) -> None:
    ours, dense, leaves = functions(case.arguments(device), case.wanted)
    if not leaves:
        pytest.skip("nothing that is wanted is there")

    def third(f: Function) -> Any:
        function = scalar(f)
        for _ in range(2):
            function = along("reverse", function, directions(leaves))
        return grad(function, argnums(leaves))(*leaves)

    assert_same(third, ours, dense)


@pytest.mark.parametrize("modes", ["rrr", "frr", "rfr", "rrf", "ffr", "frf", "rff", "fff", "rrrr"])
def test_modes_in_every_order(modes: str, case: SmallCase, device: torch.device) -> None:
    """The last letter is the innermost derivative."""
    ours, dense, leaves = functions(case.arguments(device))

    def derivative(f: Function) -> Any:
        function = scalar(f)
        for mode in reversed(modes):
            function = along({"f": "forward", "r": "reverse"}[mode], function, directions(leaves))
        return function(*leaves)

    assert_same(derivative, ours, dense)
