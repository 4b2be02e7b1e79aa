"""The operators under torch.compile, compiled autograd and torch.export."""

from __future__ import annotations

import io

import pytest
import torch
from cases import arguments
from torch import Tensor
from tracing import MASKINGS, Model, quiet

ops = torch.ops.torch_ext


def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Projections and attention, as a model would have them."""
    q, k, v = (x @ weight).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return ops.attention(q, k, v, bias=bias, is_causal=True, scale=0.4).sin()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_forward_and_backward_with_any_length(backend: str, device: torch.device) -> None:
    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
    weight = torch.randn(8, 24, device=device, requires_grad=True)
    bias = torch.randn(2, 1, 1, device=device, requires_grad=True)

    def check(length: int) -> None:
        x = torch.randn(2, length, 8, device=device, requires_grad=True)
        leaves = (x, weight, bias)
        expected, got = step(*leaves), compiled(*leaves)
        grad = torch.randn_like(got)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            torch.autograd.grad(got, leaves, grad),
            torch.autograd.grad(expected, leaves, grad),
            rtol=1e-4,
            atol=1e-5,
        )

    check(5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (6, 17, 33):
            check(length)


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_with_every_argument(masking: str, device: torch.device) -> None:
    args = arguments((6, 9), (8, 4), "grouped", masking=masking, device=device).requires_grad()
    flags = {"is_causal": args.is_causal, "scale": 0.3}

    def f(*tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, mask, bias = tensors
        return ops.attention_forward(q, k, v, mask=mask, bias=bias, **flags)[:2]

    tensors = (*args.tensors, args.mask, args.bias)
    expected, got = f(*tensors), torch.compile(f, fullgraph=True, backend="aot_eager")(*tensors)
    torch.testing.assert_close(got, expected, equal_nan=True)
    both = [torch.autograd.grad(y[0].sum(), args.leaves) for y in (got, expected)]
    torch.testing.assert_close(*both)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_under_autocast(device: torch.device) -> None:
    q = torch.randn(2, 2, 5, 8, device=device, requires_grad=True)

    def f(q: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return ops.attention(q, q, q, is_causal=True)

    got = torch.compile(f, fullgraph=True, backend="aot_eager")(q)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, f(q))
    (grad,) = torch.autograd.grad(got.sum(), q)
    assert grad.dtype == torch.float32


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_autograd(backend: str, device: torch.device) -> None:
    from torch._dynamo import compiled_autograd

    for length in (3, 5, 7):
        args = arguments((length, length), masking="bias_causal", device=device).requires_grad()
        expected = torch.autograd.grad(
            args()[0].sin().sum() + args()[1].cos().nansum(), args.leaves
        )
        with compiled_autograd._enable(torch.compile(backend=backend, fullgraph=True)):
            output, lse, _ = args()
            (output.sin().sum() + lse.cos().nansum()).backward()
        for x, grad in zip(args.leaves, expected, strict=True):
            torch.testing.assert_close(x.grad, grad, equal_nan=True)


# torch.export


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.usefixtures("fresh_dynamo")
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
