"""Bad input raises an error: the argument, what was expected, what came. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_input import (
    DERIVATIVES,
    POSITIONAL,
    SAVED,
    assert_words,
    base,
    call,
    changed,
    message,
    ops,
    positional,
)
from calls import Arguments
from torch import Tensor

B = torch.bool
F = torch.float32

# Name: (what is wrong, words that the message must contain)
BAD: dict[str, tuple[Callable[[Arguments], Arguments], list[str]]] = {
    "query_rank": (changed(query=(8,)), ["query", "[8]"]),
    "key_rank": (changed(key=(7, 8)), ["key", "[7, 8]"]),
    "value_rank": (changed(value=(2, 2, 2, 7, 6)), ["value", "[2, 2, 2, 7, 6]"]),
    "no_dimensions": (changed(query=()), ["query", "[]"]),
    "head_size": (changed(key=(2, 2, 7, 9)), ["key", "8", "[2, 2, 7, 9]"]),
    "head_size_zero": (changed(query=(2, 4, 5, 0), key=(2, 2, 7, 0)), ["query", "[2, 4, 5, 0]"]),
    "value_length": (changed(value=(2, 2, 6, 6)), ["value", "7", "[2, 2, 6, 6]"]),
    "key_samples": (changed(key=(3, 2, 7, 8)), ["key", "[3, 2, 7, 8]"]),
    "value_samples": (changed(value=(3, 2, 7, 6)), ["value", "[3, 2, 7, 6]"]),
    "heads_do_not_divide": (
        changed(key=(2, 3, 7, 8), value=(2, 3, 7, 6)),
        ["key", "4", "[2, 3, 7, 8]"],
    ),
    "more_key_heads_than_query_heads": (
        changed(key=(2, 8, 7, 8), value=(2, 8, 7, 6)),
        ["key", "[2, 8, 7, 8]"],
    ),
    "no_key_heads": (changed(key=(2, 0, 7, 8), value=(2, 0, 7, 6)), ["key", "[2, 0, 7, 8]"]),
    "value_heads": (changed(value=(2, 4, 7, 6)), ["value", "[2, 4, 7, 6]"]),
    "key_dtype": (changed(key=torch.float64), ["key", "query"]),
    "value_dtype": (changed(value=torch.bfloat16), ["value", "query"]),
    "integers": (
        changed(query=torch.int64, key=torch.int64, value=torch.int64),
        ["query", "got int64"],
    ),
    "complex": (
        changed(query=torch.complex64, key=torch.complex64, value=torch.complex64),
        ["query", "got complex64"],
    ),
    "bool": (changed(query=torch.bool, key=torch.bool, value=torch.bool), ["query", "got bool"]),
    "float8": (
        changed(query=torch.float8_e5m2, key=torch.float8_e5m2, value=torch.float8_e5m2),
        ["query", "got float8_e5m2"],
    ),
    "mask_dtype": (changed(mask=(5, 7, F)), ["mask", "bool"]),
    "mask_integers": (changed(mask=(5, 7, torch.uint8)), ["mask", "bool"]),
    "mask_shape": (changed(mask=(5, 8, B)), ["mask", "[5, 8]"]),
    "mask_heads": (changed(mask=(2, 2, 5, 7, B)), ["mask", "[2, 2, 5, 7]"]),
    "mask_rank": (changed(mask=(2, 2, 4, 5, 7, B)), ["mask", "[2, 2, 4, 5, 7]"]),
    "mask_rank_of_ones": (changed(mask=(1, 2, 4, 5, 7, B)), ["mask", "[1, 2, 4, 5, 7]"]),
    "mask_empty": (changed(mask=(5, 0, B)), ["mask", "[5, 0]"]),
    "bias_shape": (changed(bias=(7, 5)), ["bias", "[7, 5]"]),
    "bias_samples": (changed(bias=(3, 1, 1, 7)), ["bias", "[3, 1, 1, 7]"]),
    "bias_rank": (changed(bias=(2, 2, 4, 5, 7)), ["bias", "[2, 2, 4, 5, 7]"]),
    "bias_bool": (changed(bias=(5, 7, B)), ["bias"]),
    "bias_wider_than_query": (changed(bias=(5, 7, torch.float64)), ["bias"]),
    "bias_narrower_than_query": (changed(bias=(5, 7, torch.float16)), ["bias"]),
    "scale_nan": (changed(scale=float("nan")), ["scale", "nan"]),
    "scale_inf": (changed(scale=float("inf")), ["scale", "inf"]),
    "scale_minus_inf": (changed(scale=float("-inf")), ["scale", "inf"]),
    "scale_beyond_float32": (changed(scale=1e39), ["scale", "1e+39"]),
    "too_many_dimensions": (
        changed(query=(*(1,) * 17, 5, 8), key=(*(1,) * 17, 7, 8), value=(*(1,) * 17, 7, 6)),
        ["query"],
    ),
}  # fmt: skip

# What only the core operators refuse: the others broadcast samples.
BROADCAST = ["key_rank", "value_rank"]


@pytest.mark.parametrize(
    "operator, name",
    [("attention_forward", name) for name in BAD]
    + [("attention", name) for name in BAD if name not in BROADCAST],
)
def test_bad_input_is_refused(operator: str, name: str, device: torch.device) -> None:
    change, words = BAD[name]
    op = getattr(ops, operator)
    args = change(base(device))
    text = message(lambda: args(op))
    assert_words(text, "torch_ext::attention", *words)
    assert message(lambda: change(base("meta"))(op)) == text
    floating = all(x.is_floating_point() for x in args.leaves)
    if floating and "float8" not in name:
        assert message(lambda: change(base(device)).requires_grad()(op)) == text


@pytest.mark.parametrize(
    "name", [x for x in BAD if x not in BROADCAST and not x.startswith("value")]
)
def test_bad_input_of_the_weights_is_refused(name: str, device: torch.device) -> None:
    change, words = BAD[name]
    args = change(base(device))
    tensors: dict[str, Any] = {"query": args.query, "key": args.key}
    text = message(lambda: call("attention_weights", tensors, args.options))
    assert_words(text, "torch_ext::attention_weights", *words)


@pytest.mark.parametrize(
    "rows, words",
    [
        (torch.tensor([0.0, 1.0]), ["int64", "got float32"]),
        (torch.tensor([0, 1], dtype=torch.int32), ["int64", "got int32"]),
        (torch.tensor([[0, 1]]), ["1 dimension", "got rows of shape [1, 2]"]),
    ],
    ids=["float", "int32", "rank"],
)
def test_bad_rows_are_refused(rows: Tensor, words: list[str], device: torch.device) -> None:
    args = base(device)
    text = message(lambda: ops.attention_weights(args.query, args.key, rows=rows.to(device)))
    assert_words(text, "torch_ext::attention_weights", "expected rows", *words)


@pytest.mark.parametrize(
    "rows, words",
    [([0, 5], ["less than 5", "got 5"]), ([-1], ["at least 0", "got -1"])],
    ids=["too_large", "negative"],
)
def test_rows_out_of_range_are_refused_on_cpus(rows: list[int], words: list[str]) -> None:
    """On a GPU reading them would wait for it; there PyTorch's own check ends the process' work."""
    args = base(torch.device("cpu"))
    chosen = torch.tensor(rows)
    text = message(lambda: ops.attention_weights(args.query, args.key, rows=chosen))
    assert_words(text, "torch_ext::attention_weights", "expected rows", *words)


def test_a_scale_beyond_float32_is_fine_in_float64(device: torch.device) -> None:
    args = base(device, torch.float64)
    args.query = args.query * 1e-39
    args.scale = 1e39
    assert args()[0].isfinite().all()


def test_devices_may_not_be_mixed(device: torch.device) -> None:
    for name in ("key", "value", "mask", "bias"):
        args = base(device)
        args.mask = torch.ones(5, 7, dtype=torch.bool, device=device)
        args.bias = torch.zeros(5, 7, device=device)
        setattr(args, name, getattr(args, name).to("meta"))
        text = message(args)
        assert name in text and "meta" in text and "torch_ext::attention:" in text, text


def test_bad_input_writes_nothing(device: torch.device) -> None:
    for name, (change, _) in BAD.items():
        args = change(base(device))
        before = [x.clone() for x in args.leaves]
        message(args)
        for x, copy in zip(args.leaves, before, strict=True):
            assert x.shape == copy.shape and x._version == 0, name
            assert torch.equal(
                x.view(torch.uint8) if "float8" in name else x,
                copy.view(torch.uint8) if "float8" in name else copy,
            )


# The operators of derivatives, called by hand


def wrong_rank(x: Tensor) -> Tensor:
    return x[0]


def wrong_size(x: Tensor) -> Tensor:
    return x[..., :-1].contiguous()


def no_elements(x: Tensor) -> Tensor:
    return x[:0]


def wrong_dtype(x: Tensor) -> Tensor:
    return x.double()


def one_element(x: Tensor) -> Tensor:
    return x.reshape(-1)[:1]


# bias, slopes and sink are there, so that they have tangents
ALL_LEAVES: dict[str, Any] = {"masking": "bias_per_head", "slopes": "head", "sink": "head"}


@pytest.mark.parametrize("spoil", [wrong_rank, wrong_size, no_elements, wrong_dtype, one_element])
@pytest.mark.parametrize(
    "operator, name",
    [(operator, name) for operator in DERIVATIVES for name in POSITIONAL[operator]],
)
def test_derivatives_by_hand_refuse_what_does_not_fit(
    operator: str, name: str, spoil: Callable[[Tensor], Tensor], device: torch.device
) -> None:
    def bad_call(device: torch.device | str) -> Any:
        args = base(device, **ALL_LEAVES)
        tensors = positional(operator, args)
        tensors[name] = spoil(tensors[name])
        return call(operator, tensors, args.options)

    text = message(lambda: bad_call(device))
    # Where the inputs contradict one another, any of them may be the one that is named.
    blamed = [*SAVED[:-1], "bias", "slopes", "sink"] if name in SAVED[:3] else [name]
    assert_words(text, f"torch_ext::{operator}:")
    assert any(f"expected {x} " in text for x in blamed), text
    assert message(lambda: bad_call("meta")) == text


@pytest.mark.parametrize("operator", DERIVATIVES)
@pytest.mark.parametrize(
    "option", ["mask_shape", "mask_dtype", "bias_shape", "bias_bool", "scale_nan"]
)
def test_derivatives_by_hand_refuse_bad_options(
    operator: str, option: str, device: torch.device
) -> None:
    change, words = BAD[option]
    tensors, options = positional(operator, base(device)), change(base(device)).options
    assert_words(message(lambda: call(operator, tensors, options)), f"::{operator}:", *words)


@pytest.mark.parametrize("operator", DERIVATIVES)
def test_derivatives_by_hand_with_another_device(operator: str, device: torch.device) -> None:
    args = base(device, **ALL_LEAVES)
    for name in POSITIONAL[operator]:
        tensors = positional(operator, args)
        tensors[name] = tensors[name].to("meta")
        text = message(lambda tensors=tensors: call(operator, tensors, args.options))
        assert_words(text, f"torch_ext::{operator}:", "meta")


@pytest.mark.parametrize("name", ["bias", "slopes", "sink"])
@pytest.mark.parametrize("operator", ["attention_tangent", "attention_second_order"])
def test_tangents_of_absent_inputs_are_refused(
    operator: str, name: str, device: torch.device
) -> None:
    args = base(device)
    tensors = positional(operator, args)
    tensors[f"{name}_tangent"] = torch.zeros(4, 1, 1, device=device)
    text = message(lambda: call(operator, tensors, args.options))
    assert_words(text, f"::{operator}: expected {name}_tangent to be None, since {name} is None")


def test_the_tangents_of_a_broadcast_bias_have_its_own_shape(device: torch.device) -> None:
    args = base(device, **ALL_LEAVES)
    tensors = positional("attention_tangent", args)
    tensors["bias_tangent"] = torch.ones(2, 4, 5, 7, device=device)
    text = message(lambda: call("attention_tangent", tensors, args.options))
    assert_words(text, "bias_tangent to have shape [4, 5, 7]", "of shape [2, 4, 5, 7]")


def test_sparse_tensors_are_refused(device: torch.device) -> None:
    args = base(device)
    args.key = args.key.to_sparse()
    text = message(args)
    assert_words(text, "key", "strided", "layout")


@pytest.mark.parametrize("kept", [0, 40])
@pytest.mark.parametrize("operator", POSITIONAL)
def test_tensors_whose_memory_was_freed_are_refused(
    operator: str, kept: int, device: torch.device
) -> None:
    args = base(device, **ALL_LEAVES)
    for name in [*POSITIONAL[operator], "bias", "slopes", "sink"]:
        tensors, options = positional(operator, args), dict(args.options)
        if name in tensors:
            tensors[name] = tensors[name].clone()
        else:
            options[name] = options[name].clone()
        freed = tensors.get(name, options.get(name))
        if kept >= freed.untyped_storage().nbytes():
            continue
        freed.untyped_storage().resize_(kept)
        text = message(lambda tensors=tensors, options=options: call(operator, tensors, options))
        said = f"expected {name} of shape {list(freed.shape)} to have memory"
        assert_words(text, "torch_ext::attention", said, f"resized to {kept} bytes")


def test_memory_is_needed_only_where_elements_lie(device: torch.device) -> None:
    args = base(device)
    row = torch.randn(1, 1, 1, 8, device=device)
    one = args.query.new_empty(8)
    one.untyped_storage().resize_(32)
    one.copy_(row.reshape(8))
    args.query = one.expand(2, 4, 5, 8)
    expected = base(device)
    expected.key, expected.value = args.key, args.value
    expected.query = row.expand(2, 4, 5, 8).contiguous()
    for got, wanted in zip(args(), expected(), strict=True):
        assert torch.equal(got, wanted)
    nothing = torch.empty(2, 4, 0, 8, device=device)
    nothing.untyped_storage().resize_(0)
    args.query = nothing
    assert args()[0].shape == (2, 4, 0, 6)


# What `attention` broadcasts.
ONLY_FORWARD = [
    changed(key=(1, 2, 7, 8)),
    changed(value=(1, 2, 7, 6)),
    changed(key=(2, 7, 8)),
    changed(value=(7, 6), key=(1, 7, 8)),
]


@pytest.mark.parametrize("change", ONLY_FORWARD)
def test_what_attention_broadcasts_is_refused_by_the_name_of_the_operator(
    change: Callable[[Arguments], Arguments], device: torch.device
) -> None:
    change(base(device))(ops.attention)
    text = message(change(base(device)))
    assert_words(text, "torch_ext::attention_forward: expected", "like query")
