"""Positional encodings, and what word order is without them."""

import math

import pytest
import torch
from multihead import F64, NEAR
from torch import Tensor
from torch.testing import assert_close

import torch_ext
from torch_ext.nn import MultiheadAttention, RotaryEmbedding, SinusoidalPositionalEncoding

on_device = pytest.mark.usefixtures("on_device")


@on_device
def test_sinusoidal_values() -> None:
    encoding = SinusoidalPositionalEncoding(6)(torch.zeros(50, 6, dtype=F64))
    for p in (0, 1, 7, 49):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            assert encoding[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert encoding[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


@on_device
def test_sinusoidal_is_added_and_takes_positions() -> None:
    module, x = SinusoidalPositionalEncoding(6), torch.randn(2, 50, 6)
    encoding = module(torch.zeros(50, 6))
    assert_close(module(x), x + encoding)
    assert_close(module(x[:, 10:], offset=10), module(x)[:, 10:])
    positions = torch.stack((torch.arange(50), torch.arange(50).flip(0)))
    assert_close(module(x, positions)[1], x[1] + encoding.flip(0))


@on_device
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_turns_pairs(interleaved: bool) -> None:
    x = torch.randn(4, 6, dtype=F64)
    turned = RotaryEmbedding(6, base=100.0, interleaved=interleaved)(x)
    for p in range(4):
        for i in range(3):
            first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + 3)
            turn = complex(math.cos(p * 100 ** (-i / 3)), math.sin(p * 100 ** (-i / 3)))
            expected = complex(x[p, first], x[p, second]) * turn
            assert turned[p, first].item() == pytest.approx(expected.real, abs=1e-12)
            assert turned[p, second].item() == pytest.approx(expected.imag, abs=1e-12)


@on_device
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_products_depend_on_relative_positions_only(interleaved: bool) -> None:
    rotary = RotaryEmbedding(8, interleaved=interleaved)
    query, key = torch.randn(2, 3, 5, 8, dtype=F64), torch.randn(2, 3, 7, 8, dtype=F64)
    near = torch_ext.attention_weights(rotary(query), rotary(key))
    far = torch_ext.attention_weights(rotary(query, offset=100_000), rotary(key, offset=100_000))
    assert_close(far, near, rtol=1e-8, atol=1e-8)
    shifted = torch_ext.attention_weights(rotary(query, offset=1), rotary(key))
    assert (shifted - near).abs().max() > 1e-3


@on_device
def test_rotary_keeps_lengths_and_position_zero() -> None:
    x = torch.randn(2, 3, 50, 8, dtype=F64)
    turned = RotaryEmbedding(8)(x)
    assert_close(turned.norm(dim=-1), x.norm(dim=-1), **NEAR)
    assert_close(turned[..., 0, :], x[..., 0, :], rtol=0.0, atol=0.0)
    assert (turned - x)[..., 1:, :].abs().amax(-1).min() > 1e-3


@on_device
def test_rotary_decodes_one_position_at_a_time() -> None:
    rotary, x = RotaryEmbedding(8), torch.randn(2, 3, 50, 8, dtype=F64)
    whole = rotary(x)
    for p in (0, 1, 49):
        assert_close(rotary(x[:, :, p : p + 1], offset=p), whole[:, :, p : p + 1], **NEAR)
        assert_close(rotary(x[:, :, p : p + 1], torch.tensor([p])), whole[:, :, p : p + 1], **NEAR)


@on_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_encodings_are_exact_far_out_in_low_precision(dtype: torch.dtype) -> None:
    # Frequencies or positions kept in x's dtype would be wrong by whole turns here.
    x = torch.randn(3, 8).to(dtype)
    tolerance = 4 * torch.finfo(dtype).eps
    for module in (RotaryEmbedding(8).to(dtype), SinusoidalPositionalEncoding(8).to(dtype)):
        output, exact = module(x, offset=100_000), module(x.double(), offset=100_000)
        assert output.dtype == dtype
        assert_close(output.double(), exact, rtol=tolerance, atol=tolerance)


@on_device
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.int64])
def test_positions_and_offset_add_up_in_float64(dtype: torch.dtype) -> None:
    # In their own dtypes 100 + 100 is -56, 100 + 1001 is 1104, and 2^25 + 0.5 is 2^25.
    x = torch.randn(2, 3, 8, dtype=F64)
    positions = torch.tensor([0, 3, 100], dtype=dtype)
    if dtype == torch.int64:
        positions += 2**25
    for module in (RotaryEmbedding(8), SinusoidalPositionalEncoding(8)):
        for offset in (100, 1001, 0.5):
            output = module(x, positions, offset=offset)
            assert_close(output, module(x, positions.double() + offset), rtol=0.0, atol=0.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_offsets_that_are_recorded_sizes(fresh_dynamo: None) -> None:
    x, cached, rotary = torch.randn(2, 3, 8), torch.zeros(4, 8), RotaryEmbedding(8)

    def by_size(x: Tensor, cached: Tensor) -> Tensor:
        return rotary(x, offset=cached.size(-2))

    def by_item(x: Tensor, count: Tensor) -> Tensor:
        return rotary(x, offset=count.item())

    expected = rotary(x, offset=4)
    assert_close(torch.jit.trace(by_size, (x, cached))(x, cached), expected)
    for function, last in ((by_size, cached), (by_item, torch.tensor(4))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
        assert_close(compiled(x, last), expected)


@on_device
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_keeps_the_order_of_dimensions(interleaved: bool) -> None:
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)  # (B, H, N, D) stored as (B, N, H, D)
    assert RotaryEmbedding(8, interleaved=interleaved)(x).stride() == x.stride()


@on_device
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_has_every_derivative_and_takes_any_strides(interleaved: bool) -> None:
    rotary, x = RotaryEmbedding(6, interleaved=interleaved), torch.randn(2, 5, 6, dtype=F64)
    checks = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(rotary, x.requires_grad_(), **checks)
    assert torch.autograd.gradgradcheck(rotary, x)
    rows = torch.randn(2, 5, 7, dtype=F64)
    expected = rotary(rows[..., 1:].clone())
    assert_close(rotary(rows[..., 1:]), expected, rtol=0.0, atol=0.0)
    by_sample = torch.vmap(rotary, in_dims=-1, out_dims=-1)(rows[..., 1:].permute(1, 2, 0))
    assert_close(by_sample.permute(2, 0, 1), expected, rtol=0.0, atol=0.0)


# "Dog bites man", "Man bites dog": the second is the first in the order ORDER.
WORDS = {"dog": 0, "bites": 1, "man": 2}
ORDER = [2, 1, 0]


def two_sentences() -> tuple[Tensor, Tensor]:
    embedding = torch.randn(3, 12, dtype=F64)
    sentences = (["dog", "bites", "man"], ["man", "bites", "dog"])
    first, second = ([WORDS[word] for word in sentence] for sentence in sentences)
    return embedding[first], embedding[second]


@on_device
def test_without_positions_word_order_only_permutes_the_outputs() -> None:
    first, second = two_sentences()
    module = MultiheadAttention(12, 3, dtype=F64)
    assert_close(module(second), module(first)[ORDER], **NEAR)
    assert (module(first)[0] - module(first)[2]).abs().max() > 1e-3


@on_device
@pytest.mark.parametrize("kind", ["sinusoidal", "rotary"])
def test_with_positions_word_order_changes_the_outputs(kind: str) -> None:
    first, second = two_sentences()
    if kind == "sinusoidal":
        order = SinusoidalPositionalEncoding(12)
        module = MultiheadAttention(12, 3, dtype=F64)
        first, second = order(first), order(second)
    else:
        module = MultiheadAttention(12, 3, rotary=RotaryEmbedding(4), dtype=F64)
    assert (module(second) - module(first)[ORDER]).abs().amax(-1).min() > 1e-3
