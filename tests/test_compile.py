"""The operators under torch.compile, compiled autograd and torch.export."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from calls import Arguments
from cases import arguments
from differentiation import EVERYTHING, directions, functions, scalar
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.func import grad, hessian, jvp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from tracing import Model, quiet

import torch_ext

ops = torch.ops.torch_ext

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture(params=["aot_eager", "inductor"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def step(x: Tensor, weight: Tensor, bias: Tensor, sink: Tensor, seed: Tensor) -> Tensor:
    """Projections and attention, as a model would have them."""
    q, k, v = (x @ weight).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    options = {"is_causal": True, "window_left": 4, "scale": 0.4, "softcap": 2.0, "sink": sink}
    dropout = {"dropout_p": 0.3, "seed": seed}
    return ops.attention(q, k, v, bias=bias, slopes=sink.exp(), **options, **dropout).sin()


def test_forward_and_backward_with_any_length(backend: str, device: torch.device) -> None:
    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
    weight = torch.randn(8, 24, device=device, requires_grad=True)
    bias = torch.randn(2, 1, 1, device=device, requires_grad=True)
    sink = torch.randn(2, device=device, requires_grad=True)
    seed = torch.tensor([3, -4], device=device)

    def check(length: int) -> None:
        x = torch.randn(2, length, 8, device=device, requires_grad=True)
        leaves = (x, weight, bias, sink)
        expected, got = step(*leaves, seed), compiled(*leaves, seed)
        cotangent = torch.randn_like(got)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            torch.autograd.grad(got, leaves, cotangent),
            torch.autograd.grad(expected, leaves, cotangent),
            rtol=1e-4,
            atol=1e-5,
        )

    check(5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (6, 17, 33):
            check(length)


class HalfTheLength(torch.nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        length = q.size(-2)
        return torch_ext.attention(q, q, q, window_left=length // 2, window_right=length - 5)


def test_window_that_depends_on_the_length(backend: str, device: torch.device) -> None:
    model = HalfTheLength()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)

    def check(length: int) -> None:
        q = torch.randn(2, 3, length, 8, device=device, requires_grad=True)
        got, expected = (torch.autograd.grad(f(q).sin().sum(), q) for f in (compiled, model))
        torch.testing.assert_close(got, expected)

    check(12)
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (7, 17, 40):
            check(length)
    with pytest.raises(RuntimeError, match="expected window_right to be at least 0"):
        compiled(torch.randn(2, 3, 4, 8, device=device))


def test_exported_window_that_depends_on_the_length(device: torch.device) -> None:
    model, q = HalfTheLength(), torch.randn(2, 3, 12, 8, device=device)
    dims = {"q": {2: torch.export.Dim("length", min=5)}}
    exported = quiet(lambda: torch.export.export(model, (q,), dynamic_shapes=dims)).module()
    for length in (5, 17, 40):
        q = torch.randn(2, 3, length, 8, device=device)
        torch.testing.assert_close(exported(q), model(q))


@pytest.mark.parametrize("function", [torch_ext.attention, torch_ext.scaled_dot_product_attention])
def test_scale_calculated_by_numpy(
    function: Callable[..., Tensor], backend: str, device: torch.device
) -> None:
    def f(q: Tensor) -> Tensor:
        return function(q, q, q, scale=2 / numpy.sqrt(q.shape[-1]))

    numpy = pytest.importorskip("numpy")
    q = torch.randn(2, 5, 8, device=device)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend=backend)(q), f(q))


def test_every_option(backend: str, device: torch.device) -> None:
    ours, _, leaves = functions(EVERYTHING.arguments(device))
    leaves = tuple(x.requires_grad_() for x in leaves)
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    expected, got = ours(*leaves), compiled(*leaves)
    torch.testing.assert_close(got, expected)
    both = [torch.autograd.grad(sum(x.sin().sum() for x in y), leaves) for y in (got, expected)]
    torch.testing.assert_close(*both)


def test_dropout_is_drawn_by_the_generator(backend: str, device: torch.device) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.attention(q, k, v, dropout_p=0.5)

    args = arguments((30, 30), dtype=torch.float64, device=device).requires_grad()
    compiled = torch.compile(f, fullgraph=True, backend=backend)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return compiled(*args.tensors)

    output = run(1)
    assert torch.equal(output, run(1)) and not torch.equal(output, run(2))
    # output is linear in value: with one and the same mask in the backward pass, Euler's identity.
    cotangent = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, args.value, cotangent)
    torch.testing.assert_close((gradient * args.value).sum(), (output * cotangent).sum())


def test_checkpoint_drops_the_same_weights_again(backend: str, device: torch.device) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.attention(q * 2, k, v, dropout_p=0.5)

    args = arguments((30, 30), dtype=torch.float64, device=device).requires_grad()
    compiled = torch.compile(
        lambda *x: checkpoint(f, *x, use_reentrant=False), fullgraph=True, backend=backend
    )
    output = compiled(*args.tensors)
    cotangent = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, args.value, cotangent)
    torch.testing.assert_close((gradient * args.value).sum(), (output * cotangent).sum())


def test_compiled_under_autocast(device: torch.device) -> None:
    q = torch.randn(2, 2, 5, 8, device=device, requires_grad=True)

    def f(q: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return ops.attention(q, q, q, is_causal=True)

    got = torch.compile(f, fullgraph=True, backend="aot_eager")(q)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, f(q))
    (gradient,) = torch.autograd.grad(got.sum(), q)
    assert gradient.dtype == torch.float32


TRANSFORMS = {
    "jvp": lambda f, x, t: jvp(f, x, t),
    "grad": lambda f, x, t: grad(f, tuple(range(len(x))))(*x),
    "jvp_of_grad": lambda f, x, t: jvp(grad(f, tuple(range(len(x)))), x, t),
    "grad_of_jvp": lambda f, x, t: grad(lambda y: jvp(f, (y, *x[1:]), t)[1])(x[0]),
    "hessian": lambda f, x, t: hessian(f)(*x),
    "gradients_per_sample": lambda f, x, t: vmap(grad(f))(
        *(torch.stack([a, b]) for a, b in zip(x, t, strict=True))
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformations_inside(name: str, device: torch.device) -> None:
    ours, _, leaves = functions(EVERYTHING.arguments(device))
    tangents = directions(leaves)

    def f(x: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Any:
        return TRANSFORMS[name](scalar(ours), x, t)

    got = torch.compile(f, fullgraph=True, backend="aot_eager")(leaves, tangents)
    for a, b in zip(tree_leaves(got), tree_leaves(f(leaves, tangents)), strict=True):
        torch.testing.assert_close(a, b)


# Compiled autograd


def loss(args: Arguments, order: int) -> Tensor:
    """Something whose gradients are derivatives of this order."""
    output, lse, _ = args()
    value = output.sin().sum() + lse.masked_fill(lse == -torch.inf, 0).cos().sum()
    for _ in range(order - 1):
        gradients = torch.autograd.grad(value, args.leaves, create_graph=True)
        value = sum(g.square().sum() for g in gradients)
    return value


@pytest.mark.parametrize("order, lengths", [(1, [3, 5, 7]), (2, [4])])
def test_compiled_autograd(order: int, lengths: list[int], device: torch.device) -> None:
    for length in lengths:
        args = replace(EVERYTHING, lengths=(length, length)).arguments(device).requires_grad()
        expected = torch.autograd.grad(loss(args, order), args.leaves)
        value = loss(args, order)
        with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
            value.backward()
        for x, gradient in zip(args.leaves, expected, strict=True):
            torch.testing.assert_close(x.grad, gradient)


def test_compiled_autograd_refuses_third_derivatives(device: torch.device) -> None:
    args = EVERYTHING.arguments(device).requires_grad()
    value = loss(args, 3)
    with (
        pytest.raises(RuntimeError, match=r"third derivatives.*Call backward outside"),
        compiled_autograd._enable(torch.compile(backend="eager")),
    ):
        value.backward()


# torch.export


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_a_dynamic_length(strict: bool, device: torch.device) -> None:
    model = Model().to(device)
    x = torch.randn(2, 2, 5, 8, device=device)
    dims = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("length")}}
    program = quiet(lambda: torch.export.export(model, (x,), dynamic_shapes=dims, strict=strict))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for batch, length in ((2, 5), (3, 11), (4, 70)):
        y = torch.randn(batch, 2, length, 8, device=device)
        torch.testing.assert_close(loaded(y), model(y))
    targets = [str(node.target) for node in program.run_decompositions().graph.nodes]
    assert "torch_ext.attention_forward.default" in targets, targets
