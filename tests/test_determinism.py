"""The same bits: for any number of threads, in every run, for a sample or head among others."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, Arguments, arguments, arrange, operator_results
from compare import assert_bitwise_equal
from reference import TENSORS, Results

# Enough rows and keys for several tiles each, and sizes that divide nothing.
LENGTHS = (211, 333)


def run(args: Arguments) -> Results:
    """Forward and backward with cotangents that depend on the shapes alone."""
    generator = torch.Generator().manual_seed(7)
    lead = args.query.shape[:-1]
    wide = args.query.dtype if args.query.dtype == torch.float64 else torch.float32
    go = torch.randn(*lead, args.value.shape[-1], generator=generator).to(
        args.query.device, args.query.dtype
    )
    return operator_results(
        args, go, torch.randn(lead, generator=generator).to(args.query.device, wide)
    )


def assert_same(got: Results, expected: Results) -> None:
    for name in TENSORS:
        a, b = getattr(got, name), getattr(expected, name)
        if b is not None:
            assert_bitwise_equal(name, a, b)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("masking", ["none", "bias_causal"])
@pytest.mark.parametrize("leading", ["one_head", "grouped"])
def test_any_number_of_threads(
    leading: str, masking: str, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(LENGTHS, (40, 40), leading, masking=masking, dtype=dtype, device=device)
    torch.set_num_threads(1)
    expected = run(args)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert_same(run(args), expected)


@pytest.mark.parametrize("masking", ["none", "mask_full", "bias_square"])
def test_run_to_run(masking: str, device: torch.device) -> None:
    args = arguments(LENGTHS, (64, 64), masking=masking, device=device)
    torch.set_num_threads(4)
    expected = run(args)
    for _ in range(5):
        assert_same(run(args), expected)


def part(args: Arguments, index: tuple[slice, ...], kv_index: tuple[slice, ...]) -> Arguments:
    return Arguments(
        args.query[index],
        *(x[kv_index] for x in (args.key, args.value)),
        mask=args.mask,
        bias=args.bias,
        is_causal=args.is_causal,
        scale=args.scale,
    )


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("masking", ["none", "causal", "mask_square"])
def test_a_sample_alone_or_in_a_batch(
    masking: str, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(LENGTHS, (24, 24), "grouped", masking=masking, dtype=dtype, device=device)
    go = torch.randn_like(args.query)
    batch = operator_results(args, go, None)
    for i in range(2):
        one = slice(i, i + 1)
        alone = operator_results(part(args, (one,), (one,)), go[one], None)
        for name in ("output", "logsumexp", "grad_query", "grad_key", "grad_value"):
            assert_bitwise_equal(name, getattr(alone, name), getattr(batch, name)[one])


@pytest.mark.parametrize("masking", ["none", "causal", "bias_square"])
def test_a_head_alone_or_with_others(masking: str, device: torch.device) -> None:
    args = arguments(LENGTHS, (24, 24), "batched", masking=masking, device=device)
    go = torch.randn_like(args.query)
    heads = operator_results(args, go, None)
    for i in range(3):
        one = (slice(None), slice(i, i + 1))
        alone = operator_results(part(args, one, one), go[one], None)
        for name in ("output", "logsumexp", "grad_query", "grad_key", "grad_value"):
            assert_bitwise_equal(name, getattr(alone, name), getattr(heads, name)[one])


def test_a_head_without_its_other_dimensions(device: torch.device) -> None:
    args = arguments(LENGTHS, (24, 24), "batched", masking="causal", device=device)
    whole = args()
    flat = Arguments(*(x[1, 2] for x in args.tensors), is_causal=True)()
    for name, a, b in zip(("output", "logsumexp", "residual"), flat, whole, strict=True):
        assert_bitwise_equal(name, a, b[1, 2])


@pytest.mark.parametrize(
    "masking", ["bias_square", "bias_padding", "bias_rows", "bias_one_per_head", "bias_per_sample"]
)
def test_the_gradient_of_a_shared_bias(masking: str, device: torch.device) -> None:
    """What sums over samples and heads adds in an order that threads do not decide."""
    args = arguments(LENGTHS, (24, 24), "five_dims_grouped", masking=masking, device=device)
    torch.set_num_threads(1)
    expected = run(args)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert_same(run(args), expected)


def test_samples_are_added_in_index_order(device: torch.device) -> None:
    """Samples that are zero change nothing, wherever they stand among the others."""
    args = arguments((65, 130), (24, 24), "batched", device=device)
    bias = torch.randn(65, 130, device=device)
    go = torch.randn_like(args.query)
    zero = torch.zeros_like(go[:1])

    def gradient(order: list[torch.Tensor], cotangents: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = (torch.cat([x[i] for i in order]) for x in args.tensors)
        return operator_results(
            Arguments(q, k, v, bias=bias), torch.cat(cotangents), None
        ).grad_bias

    first, second = torch.tensor([0], device=device), torch.tensor([1], device=device)
    expected = gradient([first, second], [go[:1], go[1:]])
    for order, cotangents in [
        ([first, first, second], [zero, go[:1], go[1:]]),
        ([first, second, second], [go[:1], zero, go[1:]]),
        ([first, second, first, second], [go[:1], go[1:], zero, zero]),
    ]:
        assert_bitwise_equal("grad_bias", gradient(order, cotangents), expected)


@pytest.mark.parametrize(
    "layout", ["heads_inside", "strided", "transposed", "packed", "misaligned"]
)
def test_any_layout(layout: str, device: torch.device) -> None:
    args = arguments((65, 130), (24, 24), "grouped", masking="causal", device=device)
    moved = Arguments(*(arrange(x, layout) for x in args.tensors), is_causal=True)
    assert_same(run(moved), run(args))
