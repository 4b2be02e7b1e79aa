"""vmap together with derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_vmap import B, D, E, M, N, assert_equal, loop, random_mapped
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

# torch.func.jvp scripts decompositions the first time.
pytestmark = [
    pytest.mark.filterwarnings("error", "ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.usefixtures("on_device"),
]

ops = torch.ops.torch_ext

HEADS, KEY_HEADS = 4, 2
SHAPES = {
    "query": (HEADS, N, D),
    "key": (KEY_HEADS, M, D),
    "value": (KEY_HEADS, M, E),
    "bias": (HEADS, N, M),
    "slopes": (HEADS,),
    "sink": (HEADS,),
}
LEAVES = tuple(range(len(SHAPES)))
# Which of them are mapped, and where.
MAPPINGS: dict[str, tuple[int | None, ...]] = {
    "inputs": (0, 1, -1, None, None, None),
    "query": (-2, None, None, None, None, None),
    "parameters": (None, None, None, 0, 1, 0),
    "all": (0, 0, 2, 3, -1, 1),
}
every_mapping = pytest.mark.parametrize("in_dims", MAPPINGS.values(), ids=MAPPINGS)


def leaves(in_dims: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        random_mapped(name, shape, dim).to(dtype)
        for (name, shape), dim in zip(SHAPES.items(), in_dims, strict=True)
    ]


def results(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, slopes: Tensor, sink: Tensor) -> Any:
    """Output and logsumexp, with every kind of option."""
    options = {"window_left": 4, "bottom_right": True, "softcap": 2.0}
    dropout = {"dropout_p": 0.25, "seed": torch.tensor(7)}
    mask = torch.ones(N, M, dtype=torch.bool).triu(-1)
    tensors = {"mask": mask, "bias": bias, "slopes": slopes, "sink": sink}
    return ops.attention_forward(q, k, v, **tensors, **options, **dropout)[:2]


def loss(*tensors: Tensor) -> Tensor:
    output, logsumexp = results(*tensors)
    return output.sin().sum() + logsumexp.cos().sum()


def directional(*tensors: Tensor) -> Any:
    return jvp(results, tensors, tuple(x.cos() for x in tensors))[1]


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


# ---- torch.func ----------------------------------------------------------------------------------


@every_mapping
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_samples(in_dims: Any, dtype: torch.dtype) -> None:
    """Of shared parameters, too."""
    tensors, gradient = leaves(in_dims, dtype), grad(loss, LEAVES)
    assert_equal(vmap(gradient, in_dims)(*tensors), loop(gradient, in_dims)(*tensors))


@every_mapping
def test_tangents_of_samples(in_dims: Any) -> None:
    tensors = leaves(in_dims)
    assert_equal(vmap(directional, in_dims)(*tensors), loop(directional, in_dims)(*tensors))


@every_mapping
def test_second_order_of_samples(in_dims: Any) -> None:
    """Reverse over reverse, forward over reverse, reverse over forward."""

    def of_gradient(*tensors: Tensor) -> Tensor:
        return sum((x.sin().sum() for x in grad(loss, LEAVES)(*tensors)), tensors[0].new_zeros(()))

    def of_tangent(*tensors: Tensor) -> Tensor:
        return sum((x.sin().sum() for x in directional(*tensors)), tensors[0].new_zeros(()))

    def forward_over_reverse(*tensors: Tensor) -> Any:
        return jvp(grad(loss, LEAVES), tensors, tuple(x.cos() for x in tensors))[1]

    tensors = leaves(in_dims)
    for function in (grad(of_gradient, LEAVES), grad(of_tangent, LEAVES), forward_over_reverse):
        assert_equal(vmap(function, in_dims)(*tensors), loop(function, in_dims)(*tensors))


def test_third_order_of_samples() -> None:
    """A composite of other operations, with seeds that are mapped, too."""
    in_dims = (0, None, 1, 0)
    shapes = [(HEADS, 3, 2), (KEY_HEADS, 4, 2), (HEADS, 3, 4), ()]
    names = ["query", "key", "bias", "seed"]
    tensors = [random_mapped(n, s, d) for n, s, d in zip(names, shapes, in_dims, strict=True)]

    def scalar(q: Tensor, k: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        y = ops.attention(q, k, k, bias=bias, softcap=2.0, dropout_p=0.25, seed=seed)
        return y.sin().sum()

    for _ in range(2):
        scalar = (lambda f: lambda *x: grad(f)(*x).sin().sum())(scalar)
    third = grad(scalar, (0, 1, 2))
    tensors = [x.double() if x.is_floating_point() else x for x in tensors]
    assert_close(vmap(third, in_dims)(*tensors), loop(third, in_dims)(*tensors))


@every_mapping
def test_gradient_through_vmap(in_dims: Any) -> None:
    """The gradient of what is shared is summed over the samples."""

    def total(mapped: Any) -> Any:
        def function(*tensors: Tensor) -> Tensor:
            output, logsumexp = mapped(results, in_dims)(*tensors)
            return output.sin().sum() + logsumexp.cos().sum()

        return function

    tensors = leaves(in_dims)
    expected = grad(total(loop), LEAVES)(*tensors)
    assert_close(grad(total(vmap), LEAVES)(*tensors), expected)
    tensors = [x.requires_grad_() for x in tensors]
    assert_close(torch.autograd.grad(total(vmap)(*tensors), tensors), expected)


def test_nested_gradients_of_samples() -> None:
    inner, outer = (0, None, 1, None, 0, None), (0, 0, None, None, 1, 0)
    tensors = [
        random_mapped(name, shape, i, o).double()
        for (name, shape), i, o in zip(SHAPES.items(), inner, outer, strict=True)
    ]
    gradient = grad(loss, LEAVES)
    expected = loop(loop(gradient, inner), outer)(*tensors)
    assert_equal(vmap(vmap(gradient, inner), outer)(*tensors), expected)


def test_gradient_between_two_vmaps() -> None:
    """Of a mean over one dimension, for each sample of another."""
    inner, outer = (0, 0, 0, None, None, None), (1, None, 0, None, 0, None)

    def mean(mapped: Any) -> Any:
        return grad(lambda *x: sum(y.sin().mean() for y in mapped(results, inner)(*x)), LEAVES)

    tensors = [
        random_mapped(name, shape, i, o).double()
        for (name, shape), i, o in zip(SHAPES.items(), inner, outer, strict=True)
    ]
    assert_close(vmap(mean(vmap), outer)(*tensors), loop(mean(loop), outer)(*tensors))


def test_jacobians() -> None:
    tensors = leaves([None] * 6)

    def output(*x: Tensor) -> Tensor:
        return results(*x)[0][0, :2]

    reverse, forward = jacrev(output, LEAVES)(*tensors), jacfwd(output, LEAVES)(*tensors)
    expected = torch.autograd.functional.jacobian(output, tuple(tensors))
    assert_close(reverse, expected)
    assert_close(forward, expected)
    for strategy in ("reverse-mode", "forward-mode"):  # the older vmap
        actual = torch.autograd.functional.jacobian(
            output, tuple(tensors), vectorize=True, strategy=strategy
        )
        assert_close(actual, expected)


def test_hessian() -> None:
    q, k, v, bias, slopes, sink = leaves([None] * 6)
    q, k, v, bias = q[:2, :2], k[:1, :3], v[:1, :3], bias[:2, :2, :3]

    def scalar(*x: Tensor) -> Tensor:
        options = {"bias": x[3], "slopes": x[4], "sink": x[5], "softcap": 2.0}
        return ops.attention(*x[:3], **options).sin().sum()

    tensors = (q, k, v, bias, slopes[:2], sink[:2])
    expected = torch.autograd.functional.hessian(scalar, tensors)
    assert_close(hessian(scalar, LEAVES)(*tensors), expected)
    assert_close(jacrev(jacrev(scalar, LEAVES), LEAVES)(*tensors), expected)


# ---- torch.autograd's vmap -----------------------------------------------------------------------


def test_batched_grads() -> None:
    """First and second order, against one cotangent after the other."""
    tensors = [x.requires_grad_() for x in leaves([None] * 6)]
    ys = results(*tensors)
    cotangents = [torch.randn(B, *y.shape, dtype=y.dtype) for y in ys]

    def grads(ys: Any, cotangents: Any, **options: Any) -> Any:
        return torch.autograd.grad(ys, tensors, cotangents, retain_graph=True, **options)

    def looped(ys: Any, cotangents: Any) -> Any:
        each = [grads(ys, [c[i] for c in cotangents]) for i in range(B)]
        return tuple(torch.stack(x) for x in zip(*each, strict=True))

    assert_equal(grads(ys, cotangents, is_grads_batched=True), looped(ys, cotangents))
    first = grads(ys, [c[0] for c in cotangents], create_graph=True)
    cotangents = [torch.randn(B, *y.shape, dtype=y.dtype) for y in first]
    assert_equal(grads(first, cotangents, is_grads_batched=True), looped(first, cotangents))


def test_gradcheck_batched() -> None:
    q, k, v, bias, slopes, sink = leaves([None] * 6)
    tensors = [q[:2, :3], k[:1], v[:1], bias[:2, :3], slopes[:2], sink[:2]]
    tensors = [x.clone().requires_grad_() for x in tensors]

    def function(*x: Tensor) -> Any:
        options = {"bias": x[3], "slopes": x[4], "sink": x[5], "dropout_p": 0.2}
        return ops.attention_forward(*x[:3], **options, seed=torch.tensor(3))[:2]

    batched = {"check_batched_grad": True, "fast_mode": True}
    forward = {"check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(function, tensors, **batched, **forward)
    assert torch.autograd.gradgradcheck(function, tensors, **batched)
