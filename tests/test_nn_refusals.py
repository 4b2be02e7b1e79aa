"""MultiheadAttention: arguments that do not fit are refused by name."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_ext.nn import MultiheadAttention, RotaryEmbedding, SinusoidalPositionalEncoding

on_device = pytest.mark.usefixtures("on_device")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 12, "num_heads": 5}, "num_heads to divide embed_dim = 12, but got 5"),
        ({"embed_dim": 12, "num_heads": 0}, "num_heads"),
        ({"embed_dim": 12, "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads to divide.*got 3"),
        ({"embed_dim": 12, "num_heads": 3, "rotary": RotaryEmbedding(6)}, "size 4 .*got 6"),
    ],
)
def test_module_refuses_heads_that_do_not_divide(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiheadAttention(**arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dropout": 1.0}, "dropout to be at least 0 and below 1, but got 1.0"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"window_left": -1}, "window_left to be at least 0, or None, but got -1"),
        ({"window_right": -3}, "window_right"),
        ({"softcap": 0.0}, "softcap to be above 0 and finite, or None, but got 0.0"),
        ({"softcap": math.inf}, "softcap"),
        ({"alibi": "learnt"}, 'alibi to be "fixed", "learned" or None, but got \'learnt\''),
        ({"alibi": True}, "alibi"),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiheadAttention(12, 3, **option)


@on_device
@pytest.mark.parametrize(
    "key_mask",
    [torch.ones(2, 5), torch.ones(2, 4, dtype=torch.bool), torch.ones(5, dtype=torch.bool)],
    ids=["dtype", "length", "rank"],
)
def test_key_mask_that_does_not_fit_is_refused(key_mask: Tensor, device: torch.device) -> None:
    key_mask = key_mask.to(device)
    with pytest.raises(RuntimeError, match=r"key_mask to be bool .2, 5."):
        MultiheadAttention(12, 3)(torch.randn(2, 5, 12), key_mask=key_mask)


@on_device
@pytest.mark.parametrize("key_mask", [None, torch.ones(2, 5, dtype=torch.bool)])
def test_additive_mask_is_not_taken_for_a_bool_one(
    key_mask: Tensor | None, device: torch.device
) -> None:
    key_mask = None if key_mask is None else key_mask.to(device)
    x = torch.randn(2, 5, 12)
    with pytest.raises(RuntimeError, match=r"mask to .*bool.*additive masks are called bias"):
        MultiheadAttention(12, 3)(x, mask=torch.zeros(5, 5), key_mask=key_mask)


NOT_INPUTS = {
    "vector": torch.zeros(8),
    "size 1": torch.zeros(3, 1),
    "size": torch.zeros(2, 3, 9),
    "int64": torch.ones(3, 8, dtype=torch.int64),
    "complex": torch.ones(3, 8, dtype=torch.complex64),
}


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("x", NOT_INPUTS.values(), ids=NOT_INPUTS.keys())
def test_inputs_that_do_not_fit_are_refused_by_name(
    x: Tensor, scripted: bool, device: torch.device
) -> None:
    x = x.to(device)
    good = torch.randn(3, 8)
    mix, wide = MultiheadAttention(8, 2), MultiheadAttention(4, 2, kdim=8, vdim=8)
    cases: list[tuple[nn.Module, tuple[Tensor, ...], str]] = [
        (SinusoidalPositionalEncoding(8), (x,), "expected x .* embed_dim = 8"),
        (RotaryEmbedding(8), (x,), "expected x .* head_size = 8"),
        (RotaryEmbedding(8, interleaved=False), (x,), "expected x .* head_size = 8"),
        (mix, (x,), "expected query .* embed_dim = 8"),
        (mix, (x, good, good), "expected query .* embed_dim = 8"),
        (wide, (good[:, :4], x, good), "expected key .* kdim = 8"),
        (wide, (good[:, :4], good, x), "expected value .* vdim = 8"),
    ]
    for module, inputs, expected in cases:
        module = torch.jit.script(module) if scripted else module
        shape = re.escape(f"shape {list(x.shape)}")
        dtype = r"\d+" if scripted else str(x.dtype)  # TorchScript knows dtypes by number
        message = f"{expected}, but got dtype {dtype} and {shape}"
        with pytest.raises((RuntimeError, torch.jit.Error), match=message):
            module(*inputs)


@on_device
def test_self_attention_names_the_key_that_query_cannot_be() -> None:
    with pytest.raises(RuntimeError, match="expected key .* kdim = 5, but got .*2, 3, 8"):
        MultiheadAttention(8, 2, kdim=5)(torch.randn(2, 3, 8))


@on_device
@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), (3, 3), (5, 1)])
def test_positions_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    # Broadcasting x to the positions would give a result of another shape than x's.
    positions, message = torch.zeros(shape), re.escape(f"to [2, 3], but got shape {list(shape)}")
    for module in (SinusoidalPositionalEncoding(8), RotaryEmbedding(8)):
        with pytest.raises(RuntimeError, match=f"expected positions to broadcast {message}"):
            module(torch.randn(2, 3, 8), positions)
