"""Bad options raise an error in every operator that has them; good ones at the limits do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_input import (
    NOT_OF_WEIGHTS,
    POSITIONAL,
    assert_words,
    base,
    call,
    changed,
    message,
    ops,
    positional,
)
from calls import Arguments

I64 = torch.int64

# Name: (what is wrong, words that the message must contain)
BAD: dict[str, tuple[Callable[[Arguments], Arguments], list[str]]] = {
    "window_left": (changed(window_left=-1), ["window_left", "at least 0", "got -1"]),
    "window_right": (changed(window_right=-(2**63)), ["window_right", "got -9223372036854775808"]),
    "softcap_zero": (changed(softcap=0.0), ["softcap", "positive", "got 0"]),
    "softcap_negative": (changed(softcap=-2.0), ["softcap", "positive", "got -2"]),
    "softcap_nan": (changed(softcap=math.nan), ["softcap", "got nan"]),
    "softcap_inf": (changed(softcap=math.inf), ["softcap", "finite", "got inf"]),
    "softcap_beyond_float32": (changed(softcap=1e39), ["softcap", "float32", "got 1e+39"]),
    "softcap_below_float32": (changed(softcap=1e-40), ["softcap", "float32", "got 1e-40"]),
    "dropout_p_one": (changed(dropout_p=1.0), ["dropout_p", "less than 1", "got 1"]),
    "dropout_p_negative": (changed(dropout_p=-0.1), ["dropout_p", "at least 0", "got -0.1"]),
    "dropout_p_nan": (changed(dropout_p=math.nan), ["dropout_p", "got nan"]),
    "dropout_p_inf": (changed(dropout_p=math.inf), ["dropout_p", "got inf"]),
    "seed_dtype": (changed(dropout_p=0.1, seed=(2, torch.int32)), ["seed", "int64", "got int32"]),
    "seed_float": (changed(dropout_p=0.1, seed=(2,)), ["seed", "int64", "got float32"]),
    "seed_shape": (changed(dropout_p=0.1, seed=(3, I64)), ["seed", "[2]", "[3]"]),
    "seed_per_head": (changed(dropout_p=0.1, seed=(2, 4, I64)), ["seed", "[2]", "[2, 4]"]),
    "seed_rank_of_ones": (changed(dropout_p=0.1, seed=(1, 2, I64)), ["seed", "[1, 2]"]),
}  # fmt: skip
for _name in ("slopes", "sink"):
    BAD |= {
        f"{_name}_heads": (changed(**{_name: (3,)}), [_name, "[2, 4]", "[3]"]),
        f"{_name}_of_key_heads": (changed(**{_name: (2, 2)}), [_name, "[2, 4]", "[2, 2]"]),
        f"{_name}_samples": (changed(**{_name: (3, 4)}), [_name, "[3, 4]"]),
        f"{_name}_rank": (changed(**{_name: (2, 4, 1)}), [_name, "[2, 4, 1]"]),
        f"{_name}_empty": (changed(**{_name: (0,)}), [_name, "[0]"]),
        f"{_name}_wide": (changed(**{_name: (4, torch.float64)}), [_name, "like query", "float64"]),
        f"{_name}_narrow": (changed(**{_name: (4, torch.bfloat16)}), [_name, "got bfloat16"]),
        f"{_name}_integers": (changed(**{_name: (4, I64)}), [_name, "got int64"]),
    }


def takes(operator: str, name: str) -> bool:
    return operator != "attention_weights" or not name.startswith(NOT_OF_WEIGHTS)


@pytest.mark.parametrize(
    "operator, name", [(x, name) for x in POSITIONAL for name in BAD if takes(x, name)]
)
def test_bad_options_are_refused(operator: str, name: str, device: torch.device) -> None:
    change, words = BAD[name]

    def bad_call(device: torch.device | str, requires_grad: bool = False) -> Any:
        args = base(device)
        args = args.requires_grad() if requires_grad else args
        return call(operator, positional(operator, args), change(args).options)

    text = message(lambda: bad_call(device))
    said = "torch_ext::attention" if operator == "attention_forward" else f"torch_ext::{operator}"
    assert_words(text, f"{said}: expected {words[0]} ", *words[1:])
    assert message(lambda: bad_call("meta")) == text
    assert message(lambda: bad_call(device, requires_grad=True)) == text


@pytest.mark.parametrize(
    "operator, name",
    [(x, name) for x in POSITIONAL for name in ("slopes", "sink", "seed") if takes(x, name)],
)
def test_options_on_another_device_are_refused(
    operator: str, name: str, device: torch.device
) -> None:
    args = base(device)
    tensors = positional(operator, args)
    args = base(device, slopes="head", sink="head", dropout_p=0.1)
    setattr(args, name, getattr(args, name).to("meta"))
    text = message(lambda: call(operator, tensors, args.options))
    assert_words(text, f"expected {name} to be on {device}", "got meta")


@pytest.mark.parametrize(
    "operator", [x for x in POSITIONAL if x not in ("attention", "attention_weights")]
)
def test_dropout_needs_a_seed(operator: str, device: torch.device) -> None:
    args = base(device)
    tensors = positional(operator, args)
    args.dropout_p = 0.25
    text = message(lambda: call(operator, tensors, args.options))
    assert_words(
        text, f"::{operator}: expected seed to be a tensor", "0.25", "None", "torch.randint"
    )


def test_sparse_options_are_refused(device: torch.device) -> None:
    for name in ("slopes", "sink", "seed"):
        args = base(device, slopes="head", sink="head", dropout_p=0.1)
        setattr(args, name, getattr(args, name).to_sparse())
        assert_words(message(args), f"expected {name} to be a strided tensor", "layout Sparse")


@pytest.mark.parametrize("name", ["slopes", "sink"])
def test_numbers_per_head_of_one_head(name: str, device: torch.device) -> None:
    shapes: list[tuple[int, ...]] = [(), (1,), (2,), (1, 1)]
    for shape in shapes[:2]:
        changed(**{name: shape})(base(device, leading="one_head"))()
    for shape in shapes[2:]:
        args = changed(**{name: shape})(base(device, leading="one_head"))
        assert_words(message(args), f"{name} to be broadcastable to [1]", str(list(shape)))


@pytest.mark.parametrize("leading", ["one_head", "unbatched"])
def test_without_a_batch_there_is_one_seed(leading: str, device: torch.device) -> None:
    args = base(device, leading=leading, dropout_p=0.5)
    assert args.seed is not None and args.seed.shape == ()
    args()
    args.seed = args.seed.reshape(1)
    assert_words(message(args), "seed to be broadcastable to []", "[1]")


def test_numbers_per_head_of_16_bit_queries(device: torch.device) -> None:
    for name in ("slopes", "sink"):
        for dtype in (torch.bfloat16, torch.float32):
            changed(**{name: (4, dtype)})(base(device, torch.bfloat16))()
        for dtype in (torch.float16, torch.float64):
            text = message(changed(**{name: (4, dtype)})(base(device, torch.bfloat16)))
            assert_words(text, name, "bfloat16 like query, or float32", str(dtype).split(".")[1])


def test_limits_depend_on_the_accumulation_type(device: torch.device) -> None:
    for softcap in (1e-300, 1e300):
        changed(softcap=softcap)(base(device, torch.float64))()
        for dtype in (torch.float32, torch.float16):
            text = message(changed(softcap=softcap)(base(device, dtype)))
            assert_words(text, "softcap", "float32")


def test_options_at_their_limits(device: torch.device) -> None:
    plain = base(device)
    everything = {"window_left": 2**63 - 1, "window_right": 2**63 - 1, "dropout_p": 0.0}
    torch.manual_seed(0)
    expected = plain()
    got = changed(**everything)(plain)()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert changed(window_left=0, window_right=0)(base(device))()[0].isfinite().all()
    nearly_one = changed(dropout_p=math.nextafter(1.0, 0.0), seed=(2, I64))(base(device))
    assert nearly_one()[0].isfinite().all()


def test_a_seed_without_dropout_is_ignored(device: torch.device) -> None:
    args = base(device)
    expected = args()
    args.seed = torch.zeros(9, 9, device=device)
    assert all(torch.equal(a, b) for a, b in zip(args(), expected, strict=True))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((torch.zeros(2), 1, 1, 1, 0.5), ["seed", "int64", "got float32"]),
        ((torch.zeros(2, dtype=I64), -1, 1, 1, 0.5), ["heads", "at least 0", "got -1"]),
        ((torch.zeros(2, dtype=I64), 1, -2, 1, 0.5), ["queries", "at least 0", "got -2"]),
        ((torch.zeros(2, dtype=I64), 1, 1, -3, 0.5), ["keys", "at least 0", "got -3"]),
        ((torch.zeros(2, dtype=I64), 1, 1, 1, 1.0), ["dropout_p", "less than 1", "got 1"]),
        ((torch.zeros(2, dtype=I64), 1, 1, 1, math.nan), ["dropout_p", "got nan"]),
    ],
    ids=["seed", "heads", "queries", "keys", "p_one", "p_nan"],
)
def test_bad_dropout_masks_are_refused(
    arguments: tuple[Any, ...], words: list[str], device: torch.device
) -> None:
    text = message(lambda: ops._dropout_mask(arguments[0].to(device), *arguments[1:]))
    assert_words(text, "torch_ext::_dropout_mask", *words)
    assert message(lambda: ops._dropout_mask(arguments[0].to("meta"), *arguments[1:])) == text
