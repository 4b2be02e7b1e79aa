"""Output and logsumexp: agreement with PyTorch, layouts in memory, empty sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from calls import Arguments
from cases import LAYOUTS, LEADING, arguments, arrange
from compare import assert_accurate, assert_bitwise_equal, check
from plain import yardsticks
from reference import exact, visibility

ops = torch.ops.torch_ext


def test_scores_are_scaled_by_the_square_root_of_the_head_size(device: torch.device) -> None:
    args = arguments((4, 6), (16, 16), dtype=torch.float64, device=device)
    explicit = ops.attention(*args.tensors, scale=0.25)
    assert_bitwise_equal("output", ops.attention(*args.tensors), explicit)
    assert (explicit - ops.attention(*args.tensors, scale=0.3)).abs().max() > 1e-4


def test_scale_zero_averages_the_visible_values(device: torch.device) -> None:
    args = arguments((6, 6), dtype=torch.float64, device=device)
    got = ops.attention(*args.tensors, is_causal=True, scale=0.0)
    counts = torch.arange(1, 7, device=device)[:, None]
    torch.testing.assert_close(got, args.value.cumsum(-2) / counts)


@pytest.mark.parametrize("masking", ["none", "causal", "mask_square", "bias_per_head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leading", ["one_head", "unbatched", "batched", "grouped", "five_dims"])
def test_agrees_with_pytorch(
    masking: str, dtype: torch.dtype, leading: str, device: torch.device
) -> None:
    args = arguments(
        (33, 47), (24, 24), leading, masking=masking, dtype=dtype, scale=0.2, device=device
    )
    seen = visibility(args).any(-1).to(device)
    theirs = F.scaled_dot_product_attention(
        *args.tensors,
        attn_mask=args.bias if args.mask is None else args.mask,
        is_causal=args.is_causal,
        scale=args.scale,
        enable_gqa=leading == "grouped",
    )
    torch.testing.assert_close(args(ops.attention)[seen], theirs[seen])


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x != "expanded"])
def test_output_keeps_the_order_of_dimensions_in_memory(layout: str, device: torch.device) -> None:
    args = arguments((5, 5), (8, 8), layout=layout, device=device)
    output = args(ops.attention)
    order = sorted(range(4), key=lambda i: -args.query.stride(i))
    assert output.permute(order).is_contiguous()


def test_query_key_and_value_may_be_parts_of_one_projection(device: torch.device) -> None:
    batch, length, heads, size = 2, 19, 3, 16
    projected = torch.randn(batch, length, 3, heads, size, device=device)
    q, k, v = (projected[:, :, i].transpose(1, 2) for i in range(3))
    check(Arguments(q, k, v, is_causal=True))
    output = ops.attention(q, k, v)
    assert output.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    "batches", [((2, 1), (1, 3), (2, 3)), ((1,), (4,), (4,)), ((), (2,), (1,)), ((5,), (1,), (1,))]
)
def test_attention_broadcasts_samples(
    batches: tuple[tuple[int, ...], ...], device: torch.device
) -> None:
    sizes = [(4, 6, 8), (2, 5, 8), (2, 5, 3)]
    q, k, v = (
        torch.randn(*b, *s, device=device, dtype=torch.float64)
        for b, s in zip(batches, sizes, strict=True)
    )
    batch = torch.broadcast_shapes(*batches)
    expanded = (x.expand(*batch, *s) for x, s in zip((q, k, v), sizes, strict=True))
    torch.testing.assert_close(ops.attention(q, k, v).cpu(), exact(*expanded).output)


@pytest.mark.parametrize("dims", [6, 16])
def test_many_leading_dimensions(dims: int, device: torch.device) -> None:
    lead = (2,) + (1,) * (dims - 4) + (3, 2, 2)
    q, k, v = (torch.randn(*lead, 5, 4, device=device) for _ in range(3))
    args = Arguments(q, k, v, mask=torch.rand(*lead, 1, 5, device=device) < 0.8)
    check(args)


@pytest.mark.parametrize(
    "query, key, value",
    [
        ((0, 2, 3, 4), (0, 2, 5, 4), (0, 2, 5, 6)),
        ((2, 0, 3, 4), (2, 1, 5, 4), (2, 1, 5, 6)),
        ((2, 2, 0, 4), (2, 2, 5, 4), (2, 2, 5, 6)),
        ((2, 2, 3, 4), (2, 2, 0, 4), (2, 2, 0, 6)),
        ((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 0)),
        ((2, 2, 0, 4), (2, 2, 0, 4), (2, 2, 0, 6)),
        ((0, 4), (0, 4), (0, 4)),
    ],
    ids=[
        "no_samples",
        "no_heads",
        "no_queries",
        "no_keys",
        "no_value_columns",
        "neither",
        "one_head",
    ],
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_empty_sizes(
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    is_causal: bool,
    device: torch.device,
) -> None:
    q, k, v = (torch.randn(s, device=device, requires_grad=True) for s in (query, key, value))
    output, lse, residual = ops.attention_forward(q, k, v, is_causal=is_causal)
    assert output.shape == (*query[:-1], value[-1])
    assert lse.shape == residual.shape == query[:-1]
    if key[-2] == 0:
        assert (output == 0).all() and (lse == -torch.inf).all()
    for x, grad in zip(
        (q, k, v), torch.autograd.grad(output.sum() + lse.sum(), (q, k, v)), strict=True
    ):
        assert grad.shape == x.shape and grad.isfinite().all()
        if value[-1] == 0:
            continue
        assert key[-2] > 0 or (grad == 0).all()


def test_a_bias_that_is_empty_gets_an_empty_gradient(device: torch.device) -> None:
    q, k = torch.randn(2, 3, 4, device=device), torch.randn(2, 0, 4, device=device)
    bias = torch.randn(2, 3, 0, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.attention(q, k, k, bias=bias).sum(), bias)
    assert grad.shape == bias.shape


def test_a_bias_broadcast_over_no_keys_gets_a_zero_gradient(device: torch.device) -> None:
    q, k = torch.randn(2, 3, 4, device=device), torch.randn(2, 0, 4, device=device)
    bias = torch.randn(3, 1, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.attention(q, k, k, bias=bias).sum(), bias)
    assert grad.shape == bias.shape and (grad == 0).all()


def test_inputs_are_left_alone(device: torch.device) -> None:
    args = arguments(masking="bias_mask_causal", device=device)
    before = [x.clone() for x in (*args.leaves, args.mask)]
    args()
    for x, copy in zip((*args.leaves, args.mask), before, strict=True):
        assert torch.equal(x, copy)


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("mask_layout", ["strided", "transposed", "misaligned"])
def test_masks_and_biases_in_any_layout(
    leading: str, mask_layout: str, device: torch.device
) -> None:
    args = arguments(
        (19, 23), leading=leading, masking="bias_mask_causal", dtype=torch.float64, device=device
    )
    expected = args()
    args.bias = arrange(args.bias, mask_layout)
    wide = torch.zeros(
        *args.mask.shape[:-1], 2 * args.mask.shape[-1], dtype=torch.bool, device=device
    )
    wide[..., ::2] = args.mask
    args.mask = wide[..., ::2]
    for name, a, b in zip(("output", "logsumexp"), args(), expected, strict=False):
        assert_bitwise_equal(name, a, b)


def test_logsumexp_with_its_residual_is_more_exact_than_alone(device: torch.device) -> None:
    args = arguments((65, 130), (40, 40), device=device)
    wide = Arguments(*(x.double() for x in args.tensors))
    lse, residual = args()[1:]
    expected = exact(*wide.tensors).logsumexp
    alone = (lse.double().cpu() - expected).abs().max()
    together = (lse.double().cpu() + residual.double().cpu() - expected).abs().max()
    assert residual.abs().max() > 0
    assert together < 2 * alone  # what stays is the error of the scores, the rounding is gone
    plain = [x.logsumexp for x in yardsticks(*args.tensors)]
    assert_accurate("logsumexp", lse, expected, plain)
