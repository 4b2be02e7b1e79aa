"""The Python function with SDPA's signature: its meaning and errors."""

from collections.abc import Callable

import pytest
import torch
from functions import NEAR, ours, qkv, random_mask, sdpa
from torch import Tensor
from torch.testing import assert_close

import torch_ext

on_device = pytest.mark.usefixtures("on_device")

# Shapes of query, key, value, and enable_gqa: all that SDPA takes.
ACCEPTED = {
    "equal": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), False),
    "value size": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3), False),
    "2-D": ((5, 8), (7, 8), (7, 8), False),
    "3-D": ((4, 5, 8), (4, 7, 8), (4, 7, 8), False),
    "5-D": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8), False),
    "one key head": ((2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8), False),
    "one key head, all value heads": ((2, 4, 5, 8), (2, 1, 7, 8), (2, 4, 7, 8), False),
    "one query head": ((2, 1, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), False),
    "one key batch": ((2, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8), False),
    "one query batch": ((1, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), False),
    "lower rank of key": ((2, 4, 5, 8), (4, 7, 8), (4, 7, 8), False),
    "lower rank of query": ((4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), False),
    "key without heads": ((2, 4, 5, 8), (7, 8), (7, 8), False),
    "no keys": ((2, 4, 5, 8), (2, 4, 0, 8), (2, 4, 0, 8), False),
    "no batch": ((0, 4, 5, 8), (0, 4, 7, 8), (0, 4, 7, 8), False),
    "grouped": ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8), True),
    "grouped 3-D": ((4, 5, 8), (2, 7, 8), (2, 7, 8), True),
    "grouped, one key batch": ((2, 4, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8), True),
    "grouped key only": ((2, 4, 5, 8), (2, 2, 7, 8), (2, 4, 7, 8), True),
    "grouped differently": ((2, 4, 5, 8), (2, 2, 7, 8), (2, 1, 7, 8), True),
}


@on_device
@pytest.mark.parametrize("shapes", ACCEPTED.values(), ids=ACCEPTED.keys())
@pytest.mark.parametrize("is_causal", [False, True])
def test_takes_the_shapes_that_sdpa_takes(shapes: tuple, is_causal: bool) -> None:
    *shapes, enable_gqa = shapes
    inputs = qkv(*shapes, grad=True)
    expected = sdpa(*inputs, is_causal=is_causal, enable_gqa=enable_gqa)
    output = ours(*inputs, is_causal=is_causal, enable_gqa=enable_gqa)
    assert_close(output, expected, **NEAR)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    assert_close(torch.autograd.grad(output, inputs, grad), expected_grads, **NEAR)


# As above; SDPA refuses them with a RuntimeError or an IndexError.
REFUSED = {
    "fewer heads": ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8), False),
    "more heads": ((2, 2, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), False),
    "value heads": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 2, 7, 8), False),
    "batch": ((2, 4, 5, 8), (3, 4, 7, 8), (3, 4, 7, 8), False),
    "1-D": ((8,), (8,), (8,), False),
    "size of key": ((2, 4, 5, 8), (2, 4, 7, 4), (2, 4, 7, 8), False),
    "length of value": ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 6, 3), False),
    "3 of 4 heads": ((2, 4, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8), True),
    "3 of 4 key heads": ((2, 4, 5, 8), (2, 3, 7, 8), (2, 2, 7, 8), True),
    "grouped more heads": ((2, 2, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), True),
    "grouped without heads": ((5, 8), (7, 8), (7, 8), True),
}


@on_device
@pytest.mark.parametrize("shapes", REFUSED.values(), ids=REFUSED.keys())
def test_refuses_the_shapes_that_sdpa_refuses(shapes: tuple) -> None:
    *shapes, enable_gqa = shapes
    inputs = qkv(*shapes)
    with pytest.raises((RuntimeError, IndexError)):
        sdpa(*inputs, enable_gqa=enable_gqa)
    with pytest.raises(RuntimeError, match=r"torch_ext.*expected"):
        ours(*inputs, enable_gqa=enable_gqa)


@on_device
def test_missing_enable_gqa_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"enable_gqa=True.*2, 4, 5, 8.*2, 2, 7, 8"):
        ours(*qkv((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)))


MASKS: dict[str, Callable[[], Tensor]] = {
    "bool (N, M)": lambda: random_mask(5, 7),
    "bool (B, 1, N, M)": lambda: random_mask(2, 1, 5, 7),
    "bool (B, H, N, M)": lambda: random_mask(2, 4, 5, 7),
    "bool (1, M)": lambda: torch.rand(1, 7) > 0.4,
    "float (N, M)": lambda: torch.randn(5, 7, dtype=torch.float64),
    "float (H, N, M)": lambda: torch.randn(4, 5, 7, dtype=torch.float64),
    "float with -inf": lambda: torch.zeros(5, 7, dtype=torch.float64).masked_fill(
        ~random_mask(5, 7), -torch.inf
    ),
    "float32 for float64": lambda: torch.randn(5, 7),
}


@on_device
@pytest.mark.parametrize("make_mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("scale", [None, 0.3, -1.5, 0.0])
def test_attn_mask_means_what_it_means_to_sdpa(
    make_mask: Callable[[], Tensor], scale: float | None
) -> None:
    inputs, mask = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), grad=True), make_mask()
    expected, output = sdpa(*inputs, mask, scale=scale), ours(*inputs, mask, scale=scale)
    assert_close(output, expected, **NEAR)
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    assert_close(torch.autograd.grad(output, inputs, grad), expected_grads, **NEAR)


@on_device
def test_float_attn_mask_has_a_gradient() -> None:
    inputs = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8))
    mask = torch.randn(4, 1, 7, dtype=torch.float64, requires_grad=True)
    expected, output = sdpa(*inputs, mask), ours(*inputs, mask)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), mask)
    (grad,) = torch.autograd.grad(output.square().sum(), mask)
    assert expected_grad.abs().max() > 1e-3
    assert_close(grad, expected_grad, **NEAR)


@on_device
def test_query_that_sees_no_key_gets_zero_as_from_sdpa() -> None:
    inputs = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8))
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False
    for output in (sdpa(*inputs, mask), ours(*inputs, mask)):
        assert output[:, :, 2].eq(0).all()
        assert output[:, :, 1].ne(0).all()


@on_device
def test_attn_mask_with_is_causal_is_an_error() -> None:
    # SDPA documents it, and raises it from its plain path; its fused CPU path lets it pass.
    inputs, mask = qkv((5, 8), (5, 8), (5, 8)), torch.ones(5, 5, dtype=torch.bool)
    for function in (sdpa, ours):
        with pytest.raises(RuntimeError, match="is_causal"):
            function(*inputs, mask, is_causal=True)


@on_device
def test_dropout_of_sdpa_is_that_of_the_drawn_seed() -> None:
    inputs = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), grad=True)
    torch.manual_seed(3)
    output = ours(*inputs, dropout_p=0.4)
    torch.manual_seed(3)
    seed = torch.randint(2**63 - 1, (2,))
    kept = torch.ops.torch_ext._dropout_mask(seed, 4, 5, 7, 0.4)
    query, key, value = inputs
    weights = torch_ext.attention_weights(query, key)
    expected = (weights * kept / 0.6) @ value
    assert_close(output, expected, **NEAR)
    grad = torch.randn_like(output)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    assert_close(torch.autograd.grad(output, inputs, grad), expected_grads, **NEAR)


@on_device
def test_dropout_keeps_the_mean() -> None:
    # Of 2000 outputs of each dropout the means differ by at most five standard deviations.
    inputs = [x.expand(2000, -1, -1, -1) for x in qkv((3, 5, 8), (3, 7, 8), (3, 7, 8))]
    for function in (sdpa, ours):
        samples = function(*inputs, dropout_p=0.3)
        assert samples.std(0).min() > 1e-3
        far = (samples.mean(0) - sdpa(*inputs)[0]).abs() / samples.std(0) * 2000**0.5
        assert far.max() < 5


@on_device
def test_dropout_of_everything_gives_zeros_as_from_sdpa() -> None:
    inputs = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), grad=True)
    for function in (sdpa, ours):
        output = function(*inputs, dropout_p=1.0)
        assert output.eq(0).all()
        for grad in torch.autograd.grad(output.sum(), inputs):
            assert grad.eq(0).all()


@pytest.mark.parametrize("dropout_p", [-0.1, 1.5, float("nan")])
def test_impossible_dropout_is_refused_as_by_sdpa(dropout_p: float) -> None:
    inputs = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8))
    for function in (sdpa, ours):
        with pytest.raises(RuntimeError, match="dropout"):
            function(*inputs, dropout_p=dropout_p)
    with pytest.raises(RuntimeError, match=f"dropout_p to be between 0 and 1, but got {dropout_p}"):
        ours(*inputs, None, dropout_p)


@on_device
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.complex64])
def test_attn_mask_of_a_wrong_dtype_is_refused(dtype: torch.dtype) -> None:
    inputs, mask = qkv((5, 8), (5, 8), (5, 8)), torch.ones(5, 5, dtype=dtype)
    with pytest.raises(RuntimeError):
        sdpa(*inputs, mask)
    with pytest.raises(RuntimeError, match=f"attn_mask.*{dtype}"):
        ours(*inputs, mask)


def test_signature_is_sdpas() -> None:
    schema = torch.ops.aten.scaled_dot_product_attention.default._schema
    expected = {a.name: a.default_value for a in schema.arguments}
    code, defaults = ours.__code__, ours.__defaults__
    names = code.co_varnames[: code.co_argcount]
    assert names == tuple(expected)
    assert dict(zip(names[3:], defaults, strict=True)) == dict(list(expected.items())[3:])
    # The documentation shows scale and enable_gqa last, without a mark that they go by name.
    for name in names:
        assert f"{name}" in sdpa.__doc__.split(") -> Tensor")[0]
