"""The same bits: for any number of threads, in every run, for a sample or head among others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from calls import LEAVES, Arguments, Results, cotangents, direction, operator_results
from cases import ALL_OPTIONS, DTYPES, arguments, arrange
from compare import assert_bitwise_equal

# Enough rows and keys for several tiles each, and sizes that divide nothing.
LENGTHS = (211, 333)
# Few queries, and keys for several tasks of theirs.
FEW = (2, 2100)

CHOICES: dict[str, dict[str, Any]] = {
    "plain": {"leading": "one_head"},
    "bias_causal": {"leading": "grouped", "masking": "bias_causal"},
    "all_options": ALL_OPTIONS,
}

ops = torch.ops.torch_ext

Given = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def everything(args: Arguments) -> Given:
    return *cotangents(args), direction(args)


def assert_same(got: Results, expected: Results) -> None:
    assert got.tensors.keys() == expected.tensors.keys()
    for name, x in expected.tensors.items():
        assert_bitwise_equal(name, getattr(got, name), x)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("lengths", [LENGTHS, FEW], ids=["many_queries", "few_queries"])
def test_any_number_of_threads(
    lengths: tuple[int, int], options: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(lengths, (40, 40), dtype=dtype, **options, device=device)
    given = everything(args)
    torch.set_num_threads(1)
    expected = operator_results(args, *given)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert_same(operator_results(args, *given), expected)


@pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
def test_run_to_run(options: dict[str, Any], device: torch.device) -> None:
    args = arguments(LENGTHS, (64, 64), **options, device=device)
    given = everything(args)
    torch.set_num_threads(4)
    expected = operator_results(args, *given)
    for _ in range(5):
        assert_same(operator_results(args, *given), expected)


# Of shape (2, 1 or 4) or (2, …): what does not broadcast over samples.
PER_SAMPLE = ("query", "key", "value", "slopes", "sink", "seed")


def sample(args: Arguments, given: Given, i: int) -> tuple[Arguments, Given]:
    """One of the samples, as a batch of one."""
    one = slice(i, i + 1)
    go, gl, moving = given
    parts = {x: getattr(args, x)[one] for x in PER_SAMPLE if getattr(args, x) is not None}
    moved = {name: x[one] if name in PER_SAMPLE else x for name, x in moving.items()}
    return replace(args, **parts), (go[one], gl[one], moved)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {"leading": "grouped"},
        {"leading": "multi_query", "masking": "bias_square"},
        ALL_OPTIONS | {"slopes": "full", "masking": "mask_square"},
    ],
    ids=["plain", "bias", "all_options"],
)
def test_a_sample_alone_or_in_a_batch(
    options: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(LENGTHS, (24, 24), dtype=dtype, **options, device=device)
    given = everything(args)
    batch = operator_results(args, *given)
    for i in range(2):
        alone = operator_results(*flat(sample(args, given, i)))
        for name, x in alone.tensors.items():
            if not name.endswith("_bias"):
                assert_bitwise_equal(name, x, getattr(batch, name)[i : i + 1])


def flat(call: tuple[Arguments, Given]) -> tuple[Any, ...]:
    return call[0], *call[1]


@pytest.mark.parametrize("options", [{}, {"masking": "causal"}, {"window": "narrow"}])
def test_a_head_alone_or_with_others(options: dict[str, Any], device: torch.device) -> None:
    args = arguments(LENGTHS, (24, 24), "batched", **options, device=device)
    go, gl, moving = everything(args)
    torch.set_num_threads(4)  # the gradients of a head are several tasks, and one below
    heads = operator_results(args, go, gl, moving)
    torch.set_num_threads(1)
    for i in range(3):
        one = (slice(None), slice(i, i + 1))
        part = replace(args, **{name: getattr(args, name)[one] for name in LEAVES[:3]})
        moved = {name: x[one] for name, x in moving.items()}
        for name, x in operator_results(part, go[one], gl[one], moved).tensors.items():
            assert_bitwise_equal(name, x, getattr(heads, name)[one])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_of_large_gradients(dtype: torch.dtype, device: torch.device) -> None:
    """Gradients of 16 MiB and more are written past the caches where few queries give them."""
    heads, keys, size = 8, 4096, 64
    query = torch.randn(heads, 1, size, dtype=dtype, device=device)
    key, value = torch.randn(2, heads, keys, size, dtype=dtype, device=device)
    grad_output = torch.randn(heads, 1, size, dtype=dtype, device=device)

    def gradients(chosen: slice) -> tuple[torch.Tensor, ...]:
        leaves = [x[chosen].clone().requires_grad_() for x in (query, key, value)]
        return torch.autograd.grad(ops.attention(*leaves), leaves, grad_output[chosen])

    together = gradients(slice(None))
    for head in range(heads):
        for name, got, expected in zip(
            "qkv", gradients(slice(head, head + 1)), together, strict=True
        ):
            assert_bitwise_equal(name, got[0], expected[head])


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("window", [None, 301])
def test_queries_alone_or_with_others(
    dtype: torch.dtype, window: int | None, device: torch.device
) -> None:
    """Many queries go through the keys several tiles at a time; a key that is hidden from some
    holds NaN, and is the odd half of a pair."""
    length, size, first = 1217, 16, 449
    query, key, value = torch.randn(3, 1, length, size, device=device).to(dtype)
    key[:, first:] = float("nan")
    value[:, first:] = float("nan")
    options = {"is_causal": True, "window_left": window}
    together = ops.attention_forward(query, key, value, **options)
    alone = ops.attention_forward(query[:, :first], key, value, **options)
    names = ("output", "logsumexp", "residual")
    for name, many, few in zip(names, together, alone, strict=True):
        assert torch.isfinite(few).all()
        assert_bitwise_equal(name, many[:, :first], few)


def test_a_head_without_its_other_dimensions(device: torch.device) -> None:
    args = arguments(LENGTHS, (24, 24), "batched", masking="causal", device=device)
    go, gl, moving = everything(args)
    whole = operator_results(args, go, gl, moving)
    one = replace(args, **{name: getattr(args, name)[1, 2] for name in LEAVES[:3]})
    moved = {name: x[1, 2] for name, x in moving.items()}
    for name, x in operator_results(one, go[1, 2], gl[1, 2], moved).tensors.items():
        assert_bitwise_equal(name, x, getattr(whole, name)[1, 2])


SHARED: list[dict[str, str]] = [
    {"masking": "bias_square"},
    {"masking": "bias_padding"},
    {"masking": "bias_rows"},
    {"masking": "bias_one_per_head"},
    {"masking": "bias_per_sample"},
    {"slopes": "cell", "sink": "head"},
    {"slopes": "sample", "sink": "cell"},
]


@pytest.mark.parametrize("options", SHARED, ids=lambda x: "-".join(map("_".join, x.items())))
def test_gradients_of_what_is_shared(options: dict[str, str], device: torch.device) -> None:
    """What sums over samples and heads adds in an order that threads do not decide."""
    args = arguments(LENGTHS, (24, 24), "five_dims_grouped", **options, device=device)
    given = everything(args)
    torch.set_num_threads(1)
    expected = operator_results(args, *given)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert_same(operator_results(args, *given), expected)


@pytest.mark.parametrize("shared", ["bias", "slopes", "sink"])
def test_samples_are_added_in_index_order(shared: str, device: torch.device) -> None:
    """Samples that add zero change nothing, wherever they stand among the others."""
    args = arguments((65, 130), (24, 24), slopes="head", sink="head", device=device)
    args.bias = torch.randn(65, 130, device=device)
    (go, gl), moving = cotangents(args), direction(args)

    def gradients(order: list[int], is_silent: list[bool]) -> list[torch.Tensor]:
        silence = 1 - torch.tensor(is_silent, device=device).float()
        q, k, v = (x[order] for x in args.tensors)
        moved = moving | {name: moving[name][order] for name in LEAVES[:3]}
        part = replace(args, query=q, key=k, value=v)
        cotangent = (go[order] * silence[:, None, None, None], gl[order] * silence[:, None, None])
        got = operator_results(part, *cotangent, moved)
        return [getattr(got, f"{kind}_{shared}") for kind in ("grad", "second")]

    expected = gradients([0, 1], [False, False])
    for order, is_silent in [
        ([0, 0, 1], [True, False, False]),
        ([0, 1, 1], [False, True, False]),
        ([0, 1, 0, 1], [False, False, True, True]),
    ]:
        for got, wanted in zip(gradients(order, is_silent), expected, strict=True):
            assert_bitwise_equal(shared, got, wanted)


@pytest.mark.parametrize(
    "layout", ["heads_inside", "strided", "transposed", "packed", "misaligned"]
)
def test_any_layout(layout: str, device: torch.device) -> None:
    args = arguments((65, 130), (24, 24), **ALL_OPTIONS, device=device)
    given = everything(args)
    expected = operator_results(args, *given)
    moved = replace(args, **{name: arrange(getattr(args, name), layout) for name in LEAVES[:4]})
    assert_same(operator_results(moved, *given), expected)
