"""The Python functions: SDPA's signature, meaning and errors; TorchScript and torch.compile."""

import inspect
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import torch_ext
from torch_ext import _library

sdpa = torch.nn.functional.scaled_dot_product_attention
ours = torch_ext.scaled_dot_product_attention

NEAR = {"rtol": 1e-9, "atol": 1e-10}  # float64 throughout: only the order of sums differs

on_device = pytest.mark.usefixtures("on_device")


def qkv(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, grad: bool = False
) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in shapes]


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


def random_mask(*shape: int) -> Tensor:
    """Random, with a first row that sees everything and a second one that sees nothing."""
    mask = torch.rand(shape) > 0.4
    mask[..., 0, :] = True
    mask[..., 1, :] = False
    return mask


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


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch_ext.attention, "attention"),
        (torch_ext.attention_with_logsumexp, "attention_forward"),
        (torch_ext.attention_weights, "attention_weights"),
    ],
)
def test_functions_have_the_arguments_of_their_operators(
    function: Callable[..., object], operator: str
) -> None:
    arguments = getattr(torch.ops.torch_ext, operator).default._schema.arguments
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters] == [a.name for a in arguments]
    optional = [p.default for p in parameters if p.default is not inspect.Parameter.empty]
    assert optional == [a.default_value for a in arguments][-len(optional) :]


@on_device
def test_attention_takes_mask_bias_and_is_causal_together() -> None:
    q, k, v = qkv((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8))
    mask, bias = random_mask(2, 1, 5, 7), torch.randn(4, 5, 7, dtype=torch.float64)
    together = bias.masked_fill(~(mask & torch.ones(5, 7).tril().bool()), -torch.inf)
    output = torch_ext.attention(q, k, v, mask=mask, bias=bias, is_causal=True, scale=0.7)
    assert_close(output, sdpa(q, k, v, together, scale=0.7, enable_gqa=True), **NEAR)


def distances(bottom_right: bool) -> Tensor:
    """j - i - offset of 5 queries and 7 keys."""
    return torch.arange(7) - torch.arange(5)[:, None] - (2 if bottom_right else 0)


OPTIONS: dict[str, dict] = {
    "is_causal": {"is_causal": True},
    "bottom_right": {"is_causal": True, "bottom_right": True},
    "window_left": {"window_left": 1},
    "window_right": {"window_right": 2},
    "window of one": {"window_left": 0, "window_right": 0},
    "softcap": {"softcap": 1.5},
    "slopes": {"slopes": torch.tensor([0.5, 0.2, -0.3, 0.0], dtype=torch.float64)},
    "slopes per sample": {"slopes": torch.randn(2, 1, dtype=torch.float64)},
    "sink": {"sink": torch.tensor([0.5, 2.0, -1.0, -torch.inf], dtype=torch.float64)},
}
OPTIONS["everything"] = {
    **OPTIONS["bottom_right"],
    **OPTIONS["window_left"],
    **OPTIONS["softcap"],
    **OPTIONS["slopes"],
    **OPTIONS["sink"],
    "mask": torch.rand(2, 1, 5, 7) > 0.3,
    "bias": torch.randn(4, 1, 7, dtype=torch.float64),
    "scale": 0.7,
}


def moved(options: dict, device: torch.device) -> dict:
    """The options with their tensors on the device."""
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}


def formula(query: Tensor, key: Tensor, options: dict) -> tuple[Tensor, Tensor]:
    """Weights and logsumexp as the documentation of `attention` has them, (2, 4, 5, 7)."""
    scores = query @ key.mT * options.get("scale", 8**-0.5)
    softcap = options.get("softcap", torch.inf)
    scores = scores if softcap == torch.inf else softcap * torch.tanh(scores / softcap)
    distance = distances(options.get("bottom_right", False))
    zero = torch.zeros((), dtype=torch.float64)
    scores = scores + options.get("bias", zero)
    scores = scores - options.get("slopes", zero)[..., None, None] * distance.abs()
    visible = options.get("mask", torch.tensor(True))
    visible = visible & (distance >= -options.get("window_left", 99))
    visible = visible & (distance <= options.get("window_right", 99))
    if options.get("is_causal", False):
        visible = visible & (distance <= 0)
    scores = scores.masked_fill(~visible, -torch.inf)
    sink = options.get("sink", zero - torch.inf)[..., None, None].expand(2, 4, 5, 1)
    logsumexp = torch.logsumexp(torch.cat((scores, sink), -1), -1)
    safe = logsumexp.masked_fill(logsumexp == -torch.inf, 0.0)
    return torch.exp(scores - safe[..., None]), logsumexp


@on_device
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_mean_what_the_documentation_says(options: dict, device: torch.device) -> None:
    options = moved(options, device)
    query, key, value = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3))
    weights, expected_logsumexp = formula(query, key, options)
    assert_close(torch_ext.attention_weights(query, key, **options), weights, **NEAR)
    assert_close(torch_ext.attention(query, key, value, **options), weights @ value, **NEAR)
    output, logsumexp = torch_ext.attention_with_logsumexp(query, key, value, **options)
    assert_close(output, weights @ value, **NEAR)
    assert_close(logsumexp, expected_logsumexp, **NEAR)
    seed = torch.tensor([1, 2])
    dropped = weights * torch.ops.torch_ext._dropout_mask(seed, 4, 5, 7, 0.25) / 0.75
    for result in (
        torch_ext.attention(query, key, value, dropout_p=0.25, seed=seed, **options),
        torch_ext.attention_with_logsumexp(query, key, value, dropout_p=0.25, seed=seed, **options),
    ):
        output = result if isinstance(result, Tensor) else result[0]
        assert_close(output, dropped @ value, **NEAR)


@on_device
@pytest.mark.parametrize("shape", [(5, 8), (4, 5, 8), (3, 4, 5, 8), (2, 1, 4, 5, 8)])
def test_seed_is_drawn_once_for_each_batch_element(
    shape: tuple[int, ...], device: torch.device
) -> None:
    inputs = qkv(shape, shape, shape)
    seed = torch.randint(2**63 - 1, shape[:-3], generator=torch.Generator(device).manual_seed(5))
    expected = torch_ext.attention(*inputs, dropout_p=0.5, seed=seed)
    torch.manual_seed(5)
    assert torch.equal(torch_ext.attention(*inputs, dropout_p=0.5), expected)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch_ext.attention_with_logsumexp(*inputs, dropout_p=0.5)[0], expected)
    assert torch.equal(torch.rand(1), after)
    assert not torch.equal(torch_ext.attention(*inputs, dropout_p=0.5), expected)


@on_device
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_seeds_of_mapped_functions(randomness: str) -> None:
    inputs = qkv((3, 2, 4, 5, 8), (3, 2, 4, 7, 8), (3, 2, 4, 7, 8))

    def draw(function: Callable[..., Tensor]) -> Tensor:
        torch.manual_seed(5)
        mapped = torch.func.vmap(lambda *x: function(*x, dropout_p=0.5), randomness=randomness)
        result = mapped(*inputs)
        return result if isinstance(result, Tensor) else result[0]

    output = draw(torch_ext.attention)
    assert torch.equal(draw(torch_ext.attention_with_logsumexp), output)
    torch.manual_seed(5)
    shape = (3, 2) if randomness == "different" else (2,)
    seed = torch.randint(2**63 - 1, shape).expand(3, 2)
    assert_close(output, torch_ext.attention(*inputs, dropout_p=0.5, seed=seed), **NEAR)


@on_device
def test_dropout_depends_on_seed_and_position_alone() -> None:
    mask = torch.ops.torch_ext._dropout_mask
    seed = torch.tensor([3, 1 << 40, 3])
    whole = mask(seed, 4, 9, 11, 0.5)
    assert whole.shape == (3, 4, 9, 11)
    assert torch.equal(whole[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(mask(seed[1:2], 2, 5, 6, 0.5), whole[1:2, :2, :5, :6])
    assert (whole | ~mask(seed, 4, 9, 11, 0.6)).all()  # what 0.5 drops, 0.6 drops
    assert 0.4 < whole.double().mean() < 0.6


@on_device
def test_no_seed_is_drawn_without_dropout() -> None:
    inputs = qkv((4, 5, 8), (4, 7, 8), (4, 7, 8))
    torch.manual_seed(5)
    torch_ext.attention(*inputs)
    torch_ext.attention_with_logsumexp(*inputs)
    ours(*inputs)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


# As published for powers of two; in between, those of the lower power and every other of the next.
ALIBI = {
    1: [2**-8.0],
    2: [2**-4.0, 2**-8.0],
    3: [2**-4.0, 2**-8.0, 2**-2.0],
    8: [2.0**-h for h in range(1, 9)],
    12: [*(2.0**-h for h in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}


@on_device
@pytest.mark.parametrize("heads", ALIBI)
def test_alibi_slopes(heads: int) -> None:
    slopes = torch_ext.alibi_slopes(heads, dtype=torch.float64)
    assert_close(slopes, torch.tensor(ALIBI[heads], dtype=torch.float64), rtol=1e-15, atol=0.0)
    assert torch_ext.alibi_slopes(heads).dtype == torch.float32


def test_alibi_slopes_of_no_head_are_refused() -> None:
    with pytest.raises(ValueError, match="heads to be at least 1, but got 0"):
        torch_ext.alibi_slopes(0)


@on_device
def test_pieces_of_the_keys_go_together_by_their_logsumexp() -> None:
    q, k, v = qkv((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8), grad=True)
    parts = [
        torch_ext.attention_with_logsumexp(q, k[..., part, :], v[..., part, :])
        for part in (slice(0, 3), slice(3, 7))
    ]
    share = torch.softmax(torch.stack([lse for _, lse in parts]), 0).unsqueeze(-1)
    output = share[0] * parts[0][0] + share[1] * parts[1][0]
    expected = sdpa(q, k, v)
    assert_close(output, expected, **NEAR)
    grad = torch.randn_like(expected)  # comes back through the logsumexps too
    assert_close(
        torch.autograd.grad(output, (q, k, v), grad),
        torch.autograd.grad(expected, (q, k, v), grad),
        **NEAR,
    )


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


def test_public_names() -> None:
    for name in torch_ext.__all__:
        assert hasattr(torch_ext, name), name
        if callable(getattr(torch_ext, name)) and name != "cuda_architectures":
            assert "Raises:" in getattr(torch_ext, name).__doc__
    assert torch_ext.__version__.count(".") == 2


REMEDY = "run `make build` in the source tree, or, .*`pip install --force-reinstall"


def test_missing_library_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_library, "_LIBRARY", tmp_path / "libtorch_ext.so")
    with pytest.raises(ImportError, match=rf"missing.*{REMEDY}"):
        _library.load()


def test_damaged_library_is_an_import_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libtorch_ext.so").write_bytes(b"not a library")
    monkeypatch.setattr(_library, "_LIBRARY", tmp_path / "libtorch_ext.so")
    build = rf"built for torch {re.escape(torch.__version__.split('+')[0])}.*could not be loaded"
    with pytest.raises(ImportError, match=rf"{build}.*{REMEDY}"):
        _library.load()


def test_library_for_another_torch_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "torch_ext"
    without_build = shutil.ignore_patterns("*.so", "_built_for.py", "__pycache__")
    shutil.copytree(Path(torch_ext.__file__).parent, package, ignore=without_build)
    (package / "libtorch_ext.so").write_bytes(b"never opened")
    (package / "_built_for.py").write_text('TORCH_VERSION = "1.4.0+cpu"\n')
    done = subprocess.run(
        [sys.executable, "-c", "import torch_ext"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "ImportError: torch_ext: this build is for torch 1.4, but torch " in done.stderr
    assert re.search(REMEDY, done.stderr), done.stderr
