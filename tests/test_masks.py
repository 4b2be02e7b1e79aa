"""What is hidden is absent: edges of masks, rows that see nothing, inf and NaN behind a mask."""

from __future__ import annotations

import pytest
import torch
from calls import Arguments, cotangents, operator_results
from cases import DTYPES, arguments
from compare import assert_bitwise_equal, check
from torch import Tensor

ops = torch.ops.torch_ext

HIDING = ["mask", "bias", "both"]


def hide(visible: Tensor, how: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same visibility as a mask, as a bias of -inf, or half of it each."""
    odd = torch.arange(visible.shape[-1], device=visible.device) % 2 == 1
    by_mask = {"mask": visible, "bias": torch.ones_like(visible), "both": visible | odd}[how]
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    bias = bias.masked_fill(~visible & by_mask, -torch.inf)
    return {
        "mask": {"mask": by_mask},
        "bias": {"bias": bias},
        "both": {"mask": by_mask, "bias": bias},
    }[how]


@pytest.mark.isa
@pytest.mark.parametrize("how", HIDING)
@pytest.mark.parametrize("offset", [0, 1, 5, 15, 16, 31, 32, 63, 64, 65, 127, 128])
def test_a_row_that_sees_one_key_copies_its_value(
    offset: int, how: str, device: torch.device
) -> None:
    """Query i sees key (i + offset) mod M alone, for every position in a tile."""
    n = m = 150
    args = arguments((n, m), (16, 24), "grouped", device=device)
    rows = torch.arange(n, device=device)
    chosen = (rows + offset) % m
    visible = torch.zeros(n, m, dtype=torch.bool, device=device)
    visible[rows, chosen] = True
    output, lse, _ = ops.attention_forward(*args.tensors, **hide(visible, how, torch.float32))
    values = args.value.repeat_interleave(2, -3)[..., chosen, :]
    torch.testing.assert_close(output, values, rtol=1e-6, atol=0)
    keys = args.key.repeat_interleave(2, -3)[..., chosen, :]
    torch.testing.assert_close(lse, (args.query * keys).sum(-1) / 4)


@pytest.mark.isa
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 127, 200])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_row_that_sees_one_key_has_a_weight_of_1_whatever_its_score(
    dtype: torch.dtype, size: int, device: torch.device
) -> None:
    """The gradient of the score is a difference of two equal sums: 0 exactly."""
    args = arguments(
        (150, 157), (16, size), "grouped", window="diagonal", dtype=dtype, device=device
    )
    grad_output, _ = cotangents(args)
    got = operator_results(args, grad_output)
    for gradient in (got.grad_query, got.grad_key):
        assert (gradient == 0).all()
    sums = grad_output.unflatten(-3, (-1, 2)).double().sum(-3)
    torch.testing.assert_close(got.grad_value[..., :150, :].double(), sums, rtol=1e-2, atol=1e-5)


@pytest.mark.isa
@pytest.mark.parametrize(
    "lengths", [(63, 130), (130, 63), (64, 128), (65, 65), (200, 17), (17, 200), (1, 70), (70, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_is_aligned_top_left(
    lengths: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(lengths, (24, 24), "batched", masking="causal", dtype=dtype, device=device)
    got = ops.attention_forward(*args.tensors, is_causal=True)
    visible = torch.ones(lengths, dtype=torch.bool, device=device).tril()
    same = ops.attention_forward(*args.tensors, mask=visible)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    )
    torch.testing.assert_close(got[0], same[0], **tolerance)
    torch.testing.assert_close(got[1], same[1], rtol=1e-5, atol=1e-5)
    first = args.value[..., :1, :]
    torch.testing.assert_close(got[0][..., :1, :], first, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [1, 2, 16, 33, 64, 100])
def test_bands(width: int, device: torch.device) -> None:
    """Rows whose visible keys begin and end anywhere, with whole tiles hidden before and after."""
    n, m = 140, 200
    args = arguments((n, m), (16, 16), "unbatched", device=device)
    rows, columns = torch.arange(n, device=device)[:, None], torch.arange(m, device=device)[None, :]
    args.mask = (columns >= rows) & (columns < rows + width)
    if width > 1:  # one visible key leaves gradients of exactly zero, which another test is about
        check(args, *cotangents(args))
    else:
        torch.testing.assert_close(args()[0], args.value[..., :n, :], rtol=1e-6, atol=0)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mask_bias_and_causal_together_mean_all_three(
    dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(
        (70, 90), (32, 32), "grouped", masking="bias_mask_causal", dtype=dtype, device=device
    )
    everything = args.mask & (args.bias != -torch.inf)
    everything = everything & torch.ones(70, 90, dtype=torch.bool, device=device).tril()
    got = check(args, *cotangents(args))
    assert (got.output[~everything.any(-1)] == 0).all()
    assert (got.logsumexp == -torch.inf).eq(~everything.any(-1)).all()
    assert (got.grad_bias[~everything] == 0).all()


@pytest.mark.isa
@pytest.mark.parametrize("how", HIDING)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_rows_that_see_nothing(how: str, dtype: torch.dtype, device: torch.device) -> None:
    n, m = 70, 90
    args = arguments((n, m), (32, 32), "grouped", dtype=dtype, device=device)
    visible = torch.rand(2, 4, n, m, device=device) < 0.5
    blind = torch.zeros(2, 4, n, dtype=torch.bool, device=device)
    blind[0, 1, 3] = blind[1, :, 5:9] = blind[1, 2] = True
    visible &= ~blind[..., None]
    for name, x in hide(visible, how, dtype).items():
        setattr(args, name, x)
    got = operator_results(args, *cotangents(args))
    assert (got.output[blind] == 0).all()
    assert (got.logsumexp[blind] == -torch.inf).all() and got.logsumexp[~blind].isfinite().all()
    assert (got.grad_query[blind] == 0).all() and (got.grad_query[~blind] != 0).any()
    for grad in (got.grad_query, got.grad_key, got.grad_value, got.grad_bias):
        assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_nothing_visible_at_all(dtype: torch.dtype, device: torch.device) -> None:
    args = arguments((70, 90), dtype=dtype, device=device)
    args.mask = torch.zeros(1, 1, dtype=torch.bool, device=device)
    args.bias = torch.zeros(90, dtype=dtype, device=device)
    got = operator_results(args, *cotangents(args))
    assert (got.logsumexp == -torch.inf).all()
    for x in (got.output, got.grad_query, got.grad_key, got.grad_value, got.grad_bias):
        assert (x == 0).all()


@pytest.mark.parametrize("how", HIDING)
def test_infinite_cotangents_of_a_row_that_sees_nothing_stay_there(
    how: str, device: torch.device
) -> None:
    args = arguments((20, 30), device=device)
    visible = torch.ones(20, 30, dtype=torch.bool, device=device)
    visible[7] = False
    for name, x in hide(visible, how, torch.float32).items():
        setattr(args, name, x)
    grad_output, grad_lse = torch.randn_like(args.query), torch.randn(2, 3, 20, device=device)
    clean = operator_results(args, grad_output, grad_lse)
    grad_output[..., 7, :], grad_lse[..., 7] = torch.nan, torch.inf
    got = operator_results(args, grad_output, grad_lse)
    for name in ("grad_query", "grad_key", "grad_value"):
        assert_bitwise_equal(name, getattr(got, name), getattr(clean, name))


@pytest.mark.isa
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "minus_inf"])
@pytest.mark.parametrize("how", [*HIDING, "causal"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_what_is_hidden_cannot_leak(
    bad: float, how: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Keys and values that no query sees hold inf or NaN; so does a query that sees no key."""
    n, m = 40, 90
    args = arguments((n, m), (24, 24), "grouped", dtype=dtype, device=device)
    if how == "causal":
        args.is_causal = True
        columns = slice(n, None)
    else:
        visible = torch.rand(n, m, device=device) < 0.6
        columns, blind = slice(20, 75, 5), 11
        visible[:, columns] = False
        visible[blind] = False
        for name, x in hide(visible, how, dtype).items():
            setattr(args, name, x)
    grads = cotangents(args)
    for x in (args.key, args.value):
        x[..., columns, :] = 0
    clean = operator_results(args, *grads)
    args.key[..., columns, 3] = bad
    args.value[..., columns, 5] = bad
    if how != "causal":
        args.query[..., blind, :] = bad
    got = operator_results(args, *grads)
    for name in ("output", "logsumexp", "grad_query", "grad_key", "grad_value", "grad_bias"):
        if getattr(clean, name) is None:
            continue
        a, b = getattr(got, name), getattr(clean, name)
        assert a.isfinite().eq(b.isfinite()).all(), name
        # Another path may run, so not the same bits: the rounding of one operation in that dtype.
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_key_that_some_rows_see_spoils_only_those(
    bad: float, dtype: torch.dtype, device: torch.device
) -> None:
    """Below the diagonal the spoiled key and value are visible; above it they are not there."""
    n = m = 80
    spoiled = 50
    args = arguments((n, m), (24, 24), "unbatched", masking="causal", dtype=dtype, device=device)
    clean = args()
    args.key[..., spoiled, 2] = bad
    args.value[..., spoiled, :] = bad
    output, lse, _ = args()
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4 if dtype == torch.float32 else 3e-2
    for a, b in ((output, clean[0]), (lse, clean[1])):
        torch.testing.assert_close(a[:, :spoiled], b[:, :spoiled], rtol=tolerance, atol=tolerance)
    assert (
        not output[:, spoiled:].isfinite().any(-1).logical_and(lse[:, spoiled:] > 0).any()
        or bad == torch.inf
    )
    if bad != bad:
        assert output[:, spoiled:].isnan().all() and lse[:, spoiled:].isnan().all()
    got = operator_results(args, torch.randn_like(args.query), None)
    assert got.grad_query[:, :spoiled].isfinite().all()
    assert not got.grad_query[:, spoiled:].isfinite().any()


def test_a_value_that_some_rows_see_spoils_only_those(device: torch.device) -> None:
    args = arguments((40, 60), (16, 16), "unbatched", device=device)
    visible = torch.rand(40, 60, device=device) < 0.5
    args.mask = visible
    clean = args()[0]
    args.value[:, 33, 4] = torch.nan
    output = args()[0]
    assert output[:, visible[:, 33], 4].isnan().all()
    output[:, visible[:, 33], 4] = clean[:, visible[:, 33], 4]
    torch.testing.assert_close(output, clean)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_bias_of_minus_infinity_hides_as_the_mask_does(
    dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments((33, 65), (16, 16), "grouped", dtype=dtype, device=device)
    visible = torch.rand(2, 1, 33, 65, device=device) < 0.6
    grads = torch.randn_like(args.query), None
    results = []
    for how in HIDING:
        hidden = hide(visible, how, dtype)
        call = Arguments(*args.tensors, mask=hidden.get("mask"), bias=hidden.get("bias"))
        results.append(operator_results(call, *grads))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 2e-2
    for name in ("output", "logsumexp", "grad_query", "grad_key", "grad_value"):
        for other in results[1:]:
            a, b = getattr(results[0], name), getattr(other, name)
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_a_large_finite_bias_does_not_hide(device: torch.device) -> None:
    """-1e30 is a number: a row whose keys all have it still attends to them."""
    args = arguments((9, 21), dtype=torch.float64, device=device)
    args.bias = torch.full((9, 1), -1e30, dtype=torch.float64, device=device)
    output, lse, _ = args()
    assert (lse == -1e30).all() and output.isfinite().all() and (output != 0).all()
