"""The Python functions refuse arguments of another type, by name; operators would take some."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functions import ours
from torch import Tensor, nn

import torch_ext

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "attention": torch_ext.attention,
    "attention_with_logsumexp": torch_ext.attention_with_logsumexp,
    "attention_weights": torch_ext.attention_weights,
    "scaled_dot_product_attention": ours,
}
TAKES_VALUE = [name for name in FUNCTIONS if name != "attention_weights"]
WITH_OPTIONS = [name for name in FUNCTIONS if name != "scaled_dot_product_attention"]


def message(name: str, *inputs: Any, **options: Any) -> str:
    x = torch.randn(2, 4, 5, 8)
    inputs = inputs or ((x, x, x) if name in TAKES_VALUE else (x, x))
    with pytest.raises(TypeError) as error:
        FUNCTIONS[name](*inputs, **options)
    return str(error.value)


# Argument, what is wrong with it, what was expected.
OF_ALL: list[tuple[str, Any, str]] = [
    ("is_causal", 0.3, "a bool, but got float 0.3"),
    ("is_causal", math.nan, "a bool, but got float nan"),
    ("is_causal", None, "a bool, but got None"),
    ("is_causal", torch.tensor(True), "a bool, but got Tensor of shape []"),
    ("scale", "0.5", "a number or None, but got str '0.5'"),
    ("scale", True, "a number or None, but got bool True"),
]
OF_OPTIONS: list[tuple[str, Any, str]] = [
    ("bottom_right", [], "a bool, but got list"),
    ("bottom_right", 0, "a bool, but got int 0"),
    ("window_left", True, "an integer of 64 bits or None, but got bool True"),
    ("window_left", torch.tensor(3.7), "an integer of 64 bits or None, but got Tensor"),
    ("window_right", 2.0, "an integer of 64 bits or None, but got float 2.0"),
    ("softcap", "x" * 99, f"a number or None, but got str '{'x' * 39}"),
    ("mask", [True], "a tensor or None, but got list"),
    ("bias", 1.0, "a tensor or None, but got float 1.0"),
    ("slopes", [0.5], "a tensor or None, but got list"),
    ("sink", {0: 1.0}, "a tensor or None, but got dict"),
]
OF_DROPOUT: list[tuple[str, Any, str]] = [
    ("dropout_p", None, "a number, but got None"),
    ("dropout_p", "x", "a number, but got str 'x'"),
    ("dropout_p", torch.tensor(0.0), "a number, but got Tensor of shape []"),
    ("dropout_p", torch.zeros(2), "a number, but got Tensor of shape [2]"),
    ("dropout_p", False, "a number, but got bool False"),
]
OF_SDPA: list[tuple[str, Any, str]] = [
    ("enable_gqa", "x", "a bool, but got str 'x'"),
    ("attn_mask", [1], "a tensor or None, but got list"),
]
WRONG = [(name, *case) for name in FUNCTIONS for case in OF_ALL]
WRONG += [(name, *case) for name in WITH_OPTIONS for case in OF_OPTIONS]
WRONG += [(name, *case) for name in TAKES_VALUE for case in OF_DROPOUT]
WRONG += [("scaled_dot_product_attention", *case) for case in OF_SDPA]
WRONG += [("attention_weights", "rows", [0, 1], "a tensor or None, but got list")]
WRONG += [(name, "seed", 3, "a tensor or None, but got int 3") for name in TAKES_VALUE[:2]]


@pytest.mark.parametrize(("name", "argument", "value", "expected"), WRONG)
def test_other_types_are_refused_by_name(
    name: str, argument: str, value: object, expected: str
) -> None:
    text = message(name, **{argument: value})
    assert text.startswith(f"torch_ext.{name}: expected {argument} to be {expected}"), text
    assert len(text) < 200


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"scale": 0.5}, {"dropout_p": 0.5}])
def test_inputs_that_are_no_tensors_are_refused_by_name(
    name: str, place: int, options: dict[str, Any]
) -> None:
    if name == "attention_weights" and (place == 2 or "dropout_p" in options):
        return
    x = torch.zeros(2, 5, 8)
    argument = ("query", "key", "value")[place]
    for wrong, kind in ((None, "None"), (x.numpy(), "ndarray"), ({"q": x}, "dict")):
        inputs = [x, x, x] if name in TAKES_VALUE else [x, x]
        inputs[place] = wrong
        assert message(name, *inputs, **options) == (
            f"torch_ext.{name}: expected {argument} to be a tensor, but got {kind}"
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_learned_scale_is_refused(name: str) -> None:
    """It would get no gradient, silently."""
    for scale in (nn.Parameter(torch.ones(())), torch.tensor(0.5), torch.ones(1)):
        text = message(name, scale=scale)
        assert f"scale to be a number or None, but got {type(scale).__name__} of shape" in text
        assert "multiply query by it and pass scale=1.0" in text
    x = torch.randn(5, 8)
    inputs = (x, x, x) if name in TAKES_VALUE else (x, x)

    def loss(scale: Tensor) -> Tensor:
        result: Tensor = FUNCTIONS[name](*inputs, scale=scale)[0].sum()
        return result

    with pytest.raises(TypeError, match="would get no gradient"):
        torch.func.grad(loss)(torch.tensor(0.5))


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_a_learned_softcap_is_refused(name: str) -> None:
    text = message(name, softcap=nn.Parameter(torch.ones(())))
    assert "softcap to be a number or None, but got Parameter of shape []" in text
    assert "would get no gradient" in text


def test_the_way_out_for_a_learned_scale() -> None:
    query, key, value = torch.randn(3, 2, 5, 8, dtype=torch.float64)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    output = torch_ext.attention(query * scale, key, value, scale=1.0)
    torch.testing.assert_close(output, torch_ext.attention(query, key, value, scale=0.3))
    output.square().sum().backward()
    assert scale.grad is not None and scale.grad.abs() > 1e-3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_of_numpy_are_numbers(name: str) -> None:
    numpy = pytest.importorskip("numpy")
    x = torch.randn(2, 5, 8)
    inputs = (x, x, x) if name in TAKES_VALUE else (x, x)
    numbers = {"scale": numpy.float32(0.5), "is_causal": numpy.bool_(True)}
    plain: dict[str, Any] = {"scale": 0.5, "is_causal": True}
    if name in WITH_OPTIONS:
        numbers |= {"window_left": numpy.int64(2), "softcap": numpy.float64(3.0)}
        plain |= {"window_left": 2, "softcap": 3}
    got, expected = FUNCTIONS[name](*inputs, **numbers), FUNCTIONS[name](*inputs, **plain)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)


def scaled_by_size(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scale = query.size(-1) ** -0.25
    return torch_ext.attention(query, key, value, scale=scale, window_left=key.size(-2) // 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_recorded_sizes_are_numbers(fresh_dynamo: None) -> None:
    x = torch.randn(2, 5, 8)
    expected = scaled_by_size(x, x, x)
    compiled = torch.compile(scaled_by_size, fullgraph=True, backend="eager", dynamic=True)
    for recorded in (
        torch.jit.trace(scaled_by_size, (x, x, x)),
        torch.fx.symbolic_trace(scaled_by_size),
        compiled,
    ):
        assert torch.equal(recorded(x, x, x), expected)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout: torch.layout) -> None:
    x = torch.nested.nested_tensor([torch.randn(5, 8), torch.randn(4, 8)], layout=layout)
    with pytest.raises(RuntimeError, match="expected query to be .*strided.*nested"):
        ours(x, x, x)


def test_alibi_slopes_refuse_what_is_no_number_of_heads() -> None:
    for heads, got in ((8.0, "float 8.0"), (True, "bool True"), ("8", "str '8'"), (None, "None")):
        text = f"alibi_slopes: expected heads to be an integer of 64 bits, but got {got}"
        with pytest.raises(TypeError, match=re.escape(text)):
            torch_ext.alibi_slopes(heads)  # type: ignore[arg-type]
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=f"dtype to be floating point, but got {dtype}"):
            torch_ext.alibi_slopes(8, dtype=dtype)
    with pytest.raises(TypeError, match="dtype to be a torch.dtype or None, but got str 'float32'"):
        torch_ext.alibi_slopes(8, dtype="float32")  # type: ignore[arg-type]


def test_alibi_slopes_take_numpys_integers() -> None:
    numpy = pytest.importorskip("numpy")
    assert torch.equal(torch_ext.alibi_slopes(numpy.int64(6)), torch_ext.alibi_slopes(6))


def test_plots_refuse_what_is_no_tensor_and_no_token() -> None:
    weights = torch.full((2, 2), 0.5)
    with pytest.raises(TypeError, match="expected weights to be a tensor, but got ndarray"):
        torch_ext.plot_attention(weights.numpy(), ["a", "b"], ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected query_tokens to be strings, but got int 7"):
        torch_ext.plot_attention(weights, [7, 8], ["a", "b"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected key_tokens to be strings, but got Tensor of"):
        torch_ext.plot_attention(weights, ["a", "b"], torch.tensor([7, 8]))  # type: ignore[arg-type]
