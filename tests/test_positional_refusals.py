"""Positional encodings: arguments that do not fit are refused by name."""

import math
import re

import pytest
import torch
from torch import nn

from torch_ext.nn import RotaryEmbedding, SinusoidalPositionalEncoding

on_device = pytest.mark.usefixtures("on_device")


@pytest.mark.parametrize("size", [0, -2, 3])
def test_encodings_refuse_odd_sizes(size: int) -> None:
    for module in (SinusoidalPositionalEncoding, RotaryEmbedding):
        with pytest.raises(ValueError, match=f"even, but got {size}"):
            module(size)


@on_device
@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), (3, 3), (5, 1)])
def test_positions_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    # Broadcasting x to the positions would give a result of another shape than x's.
    positions, message = torch.zeros(shape), re.escape(f"to [2, 3], but got shape {list(shape)}")
    for module in (SinusoidalPositionalEncoding(8), RotaryEmbedding(8)):
        with pytest.raises(RuntimeError, match=f"expected positions to broadcast {message}"):
            module(torch.randn(2, 3, 8), positions)


ENCODINGS = [SinusoidalPositionalEncoding(8), RotaryEmbedding(8)]


@pytest.mark.parametrize("module", ENCODINGS, ids=["sinusoidal", "rotary"])
def test_positions_that_are_no_real_numbers_here_are_refused(module: nn.Module) -> None:
    x = torch.randn(2, 3, 8)
    for dtype in (torch.complex64, torch.bool):
        with pytest.raises(RuntimeError, match=f"positions to be real .* got dtype {dtype}"):
            module(x, torch.ones(3, dtype=dtype))
    with pytest.raises(RuntimeError, match="positions to be real numbers on cpu, .* on meta"):
        module(x, torch.ones(3, device="meta"))
    with pytest.raises(TypeError, match="positions to be a tensor or None, but got list"):
        module(x, [0, 1, 2])


@pytest.mark.parametrize("module", ENCODINGS, ids=["sinusoidal", "rotary"])
def test_offsets_that_are_no_positions_are_refused(module: nn.Module) -> None:
    x = torch.randn(2, 3, 8)
    offsets: list[tuple[object, str]] = [
        ("1", "str '1'"),
        (None, "None"),
        (True, "bool True"),
        (torch.zeros(2, 1), r"Tensor of shape \[2, 1\]; .* positions"),
    ]
    for offset, got in offsets:
        with pytest.raises(TypeError, match=f"expected offset to be a number, but got {got}"):
            module(x, offset=offset)
    for beyond in (2**70, -(2**54), math.inf, math.nan):
        with pytest.raises(ValueError, match=r"offset to be at most 2\^53 in magnitude"):
            module(x, offset=beyond)


def test_options_of_rotary_embeddings_that_mean_nothing_are_refused() -> None:
    for base in (0, -10.0, math.nan, math.inf, 10**400):
        with pytest.raises(ValueError, match=f"base to be positive and finite, but got {base}"):
            RotaryEmbedding(8, base=base)
    with pytest.raises(TypeError, match="base to be a number, but got str"):
        RotaryEmbedding(8, base="10000")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="interleaved to be a bool, but got None"):
        RotaryEmbedding(8, interleaved=None)  # type: ignore[arg-type]
    for make in (RotaryEmbedding, SinusoidalPositionalEncoding):
        with pytest.raises(TypeError, match="to be an integer of 64 bits, but got float 8.0"):
            make(8.0)
