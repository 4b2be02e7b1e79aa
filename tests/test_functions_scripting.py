"""The Python functions in TorchScript and torch.compile."""

import io
from collections.abc import Callable

import pytest
import torch
from functions import NEAR, ours, qkv
from torch import Tensor
from torch.testing import assert_close

import torch_ext

on_device = pytest.mark.usefixtures("on_device")


def call_everything(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    first = torch_ext.attention(query, key, value, mask=mask, is_causal=True)
    seed = torch.tensor([3, 4])
    sink = query.sum((-2, -1))
    first = first + torch_ext.attention(
        query, key, value, window_left=2, softcap=3.0, sink=sink, dropout_p=0.5, seed=seed
    )
    second, logsumexp = torch_ext.attention_with_logsumexp(
        query, key, value, scale=0.5, window_right=2, bottom_right=True, slopes=0.1 * sink
    )
    third = torch_ext.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    fourth = torch_ext.scaled_dot_product_attention(query, key[:, :1], value[:, :1])
    weights = torch_ext.attention_weights(query, key, mask=mask, softcap=2.0, window_left=1)
    return first + second + third + fourth + logsumexp.unsqueeze(-1) + weights.sum(-1, True)


def everything_inputs() -> list[Tensor]:
    return [
        *qkv((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8), grad=True),
        torch.rand(2, 1, 5, 7) > 0.3,
    ]


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_functions_script_save_and_load() -> None:
    inputs = everything_inputs()
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(call_everything), archive)
    archive.seek(0)
    scripted = torch.jit.load(archive)
    expected = call_everything(*inputs)
    for _ in range(3):  # profiling, optimised, and as optimised
        output = scripted(*inputs)
        assert_close(output, expected, rtol=0.0, atol=0.0)
        grads = torch.autograd.grad(output.square().sum(), inputs[:3])
    assert_close(grads, torch.autograd.grad(expected.square().sum(), inputs[:3]), **NEAR)


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_functions_draw_as_the_functions_do() -> None:
    inputs = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8))

    def draw(function: Callable[..., Tensor]) -> Tensor:
        torch.manual_seed(7)
        result = function(*inputs, dropout_p=0.5)
        return result if isinstance(result, Tensor) else result[0]

    expected = draw(torch_ext.attention)
    for function in (torch_ext.attention, torch_ext.attention_with_logsumexp, ours):
        scripted = torch.jit.script(function)
        for _ in range(3):
            assert torch.equal(draw(scripted), expected)
    with pytest.raises(torch.jit.Error, match="dropout_p"):
        scripted(*inputs, dropout_p=1.5)


@on_device
@pytest.mark.parametrize("dynamic", [False, True])
def test_functions_compile_in_one_graph(fresh_dynamo: None, dynamic: bool) -> None:
    # Captures forward and backward; what the compiler makes of the operators is tested with them.
    inputs = everything_inputs()
    compiled = torch.compile(call_everything, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    output, expected = compiled(*inputs), call_everything(*inputs)
    assert_close(output, expected, **NEAR)
    assert_close(
        torch.autograd.grad(output.square().sum(), inputs[:3]),
        torch.autograd.grad(expected.square().sum(), inputs[:3]),
        **NEAR,
    )


@on_device
def test_second_derivatives_compile_in_one_graph(fresh_dynamo: None) -> None:
    query, key, value = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8))

    def gradient(query: Tensor) -> Tensor:
        grad: Tensor = torch.func.grad(
            lambda q: torch_ext.attention(q, key, value, softcap=2.0).sin().sum()
        )(query)
        return grad

    def both(query: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        penalty = torch.func.grad(lambda q: gradient(q).square().sum())(query)
        return penalty, torch.func.jvp(gradient, (query,), (direction,))[1]

    direction = torch.randn_like(query)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert_close(compiled(query, direction), both(query, direction), **NEAR)


@on_device
def test_double_backward_of_a_compiled_function_is_refused(fresh_dynamo: None) -> None:
    inputs = qkv((2, 5, 8), (2, 7, 8), (2, 7, 8), grad=True)
    output = torch.compile(torch_ext.attention, backend="aot_eager")(*inputs)
    (grad,) = torch.autograd.grad(output.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()
