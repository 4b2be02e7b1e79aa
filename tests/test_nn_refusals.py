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
        ({"softcap": 0.0}, "softcap to be positive and finite in .*float32, or None, but got 0.0"),
        ({"softcap": math.inf}, "softcap"),
        ({"softcap": 1e-40}, "softcap"),
        ({"softcap": 1e39}, "softcap"),
        ({"softcap": 1e39, "dtype": torch.bfloat16}, "softcap"),
        ({"scale": math.nan}, "scale to be finite in .*float32, or None, but got nan"),
        ({"scale": 1e39}, "scale"),
        ({"kdim": 0}, "kdim to be at least 1, but got 0"),
        ({"vdim": -1}, "vdim"),
        ({"dtype": torch.complex64}, "dtype to be float64, .*, or None, but got torch.complex64"),
        ({"dtype": torch.int8}, "dtype"),
        ({"alibi": "learnt"}, 'alibi to be "fixed", "learned" or None, but got \'learnt\''),
        ({"alibi": True}, "alibi"),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiheadAttention(12, 3, **option)


def test_limits_of_options_are_those_of_the_dtype() -> None:
    for softcap in (1e-300, 1e300):
        MultiheadAttention(12, 3, softcap=softcap, scale=softcap, dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 12.0}, "embed_dim to be an integer of 64 bits, but got float 12.0"),
        ({"num_heads": "3"}, "num_heads to be an integer of 64 bits, but got str '3'"),
        ({"num_kv_heads": True}, "num_kv_heads to be an integer"),
        ({"kdim": 12.0}, "kdim to be an integer"),
        ({"vdim": torch.tensor(12)}, "vdim to be an integer of 64 bits, but got Tensor"),
        ({"bias": None}, "bias to be a bool, but got None"),
        ({"dropout": "0.1"}, "dropout to be a number, but got str '0.1'"),
        (
            {"window_left": 1.5},
            "window_left to be an integer of 64 bits or None, but got float 1.5",
        ),
        ({"window_right": 2**63}, "window_right to be an integer of 64 bits or None"),
        ({"bottom_right": "no"}, "bottom_right to be a bool, but got str 'no'"),
        ({"scale": nn.Parameter(torch.ones(()))}, "scale .* would get no gradient"),
        ({"softcap": "5"}, "softcap to be a number or None"),
        ({"sink": 0.5}, "sink to be a bool, but got float 0.5"),
        ({"rotary": True}, "rotary to be a RotaryEmbedding or None, but got bool True"),
        ({"rotary": nn.Linear(4, 4)}, "rotary to be a RotaryEmbedding or None, but got Linear"),
    ],
)
def test_options_of_another_type_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"MultiheadAttention: expected {message}"):
        MultiheadAttention(**{"embed_dim": 12, "num_heads": 3, **arguments})


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


@on_device
@pytest.mark.parametrize("shape", [(5, 4), (3, 1, 5, 5), (3, 1, 1, 5)])
def test_mask_that_does_not_go_with_key_mask_is_refused(
    shape: tuple[int, ...], device: torch.device
) -> None:
    module, x = MultiheadAttention(12, 3), torch.randn(2, 5, 12)
    key_mask = torch.ones(2, 5, dtype=torch.bool)
    message = f"expected mask to be .*key_mask of shape [2, 5] on {device}, but got mask of shape "
    message = re.escape(message + str(list(shape))).replace(re.escape(".*"), ".*")
    with pytest.raises(RuntimeError, match=message):
        module(x, mask=torch.ones(shape, dtype=torch.bool), key_mask=key_mask)


@on_device
@pytest.mark.parametrize("shape", [(1, 2, 3, 5, 5), (2, 2, 5, 5), (4, 5)])
def test_mask_that_goes_with_key_mask_alone_is_refused_by_the_operator(
    shape: tuple[int, ...],
) -> None:
    key_mask, mask = torch.ones(2, 5, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="expected mask to be broadcastable to"):
        MultiheadAttention(12, 3)(torch.randn(2, 5, 12), mask=mask, key_mask=key_mask)


def test_masks_on_another_device_are_refused() -> None:
    module, x = MultiheadAttention(12, 3), torch.randn(2, 5, 12)
    here, there = (torch.ones(2, 5, dtype=torch.bool, device=d) for d in ("cpu", "meta"))
    with pytest.raises(RuntimeError, match="expected mask to .* on cpu, but got mask .* on meta"):
        module(x, mask=there[:1], key_mask=here)
    with pytest.raises(RuntimeError, match="expected key_mask to be bool .* on cpu .* on meta"):
        module(x, key_mask=there)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_inputs_that_the_weights_cannot_multiply_are_refused_by_name(name: str) -> None:
    module, x = MultiheadAttention(12, 3), torch.randn(2, 5, 12)
    inputs = {"query": x, "key": x, "value": x}
    for wrong, got in ((x.double(), "torch.float64 on cpu"), (x.to("meta"), "torch.float32 on m")):
        message = f"expected {name} to be torch.float32 on cpu like the weight .*, but got {got}"
        with pytest.raises(RuntimeError, match=message):
            module(**{**inputs, name: wrong})
    with torch.autocast("cpu", torch.bfloat16):
        module(**{**inputs, name: x.bfloat16()})


def test_inputs_that_are_no_tensors_are_refused_by_name() -> None:
    x = torch.randn(2, 5, 12)
    for module in (MultiheadAttention(12, 3), SinusoidalPositionalEncoding(12)):
        name = "query" if isinstance(module, MultiheadAttention) else "x"
        with pytest.raises(TypeError, match=f"expected {name} to be a tensor, but got None"):
            module(None)
        for layout in (torch.strided, torch.jagged):
            nested = torch.nested.nested_tensor([x[0], x[1, :3]], layout=layout)
            with pytest.raises(RuntimeError, match=f"expected {name} to be strided.*nested"):
                module(nested)
    for name in ("key", "value", "mask", "key_mask"):
        with pytest.raises(TypeError, match=f"expected {name} to be a tensor or None, but got li"):
            MultiheadAttention(12, 3)(x, **{name: [True]})


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
