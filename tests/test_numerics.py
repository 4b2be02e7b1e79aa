"""Values at the edge of what a dtype holds."""

from __future__ import annotations

import pytest
import torch
from calls import Arguments, operator_results, takes_subnormals_for_zero
from cases import DTYPES, arguments
from compare import check
from reference import exact

ops = torch.ops.torch_ext

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.isa
@pytest.mark.parametrize("shift", [-1e9, 1e9, -1e30, 3e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_sum_to_one_under_a_common_bias(
    shift: float, dtype: torch.dtype, device: torch.device
) -> None:
    """1024 keys all biased by -1e9: softmax does not care, and neither may the backward.

    A logsumexp rounded to float32 would lose log(1024) beside 1e9 and make the weights sum to 1024.
    """
    keys = 1024
    q = torch.zeros(1, 2, 5, 16, dtype=dtype, device=device)
    k, v = (torch.randn(1, 2, keys, 16, device=device).to(dtype) for _ in range(2))
    bias = torch.full(
        (keys,), shift, dtype=torch.float32 if dtype.itemsize < 8 else dtype, device=device
    )
    args = Arguments(q, k, v, bias=bias).requires_grad()
    output, lse, residual = args()
    torch.testing.assert_close(
        output.double(),
        v.double().mean(-2, keepdim=True).expand(output.shape),
        rtol=0,
        atol=2e-2 if dtype.itemsize == 2 else 1e-6,
    )
    ones = torch.ones_like(output)
    grad_query, grad_key, grad_value, grad_bias = torch.autograd.grad(output, args.leaves, ones)
    weights = grad_value[..., 0].double() / 5  # every row gives every key 1 / 1024
    torch.testing.assert_close(
        weights.sum(-1),
        torch.ones_like(weights[..., 0]),
        rtol=1e-2 if dtype.itemsize == 2 else 1e-5,
        atol=0,
    )
    expected = exact(*args.tensors, bias=bias, grad_output=ones)
    scale = float(expected.grad_query.abs().max())
    for name, grad in (
        ("grad_query", grad_query),
        ("grad_key", grad_key),
        ("grad_bias", grad_bias),
    ):
        wanted = getattr(expected, name)
        bound = (1e-2 if dtype.itemsize == 2 else 1e-5) * max(scale, float(wanted.abs().max()))
        assert (grad.double().cpu() - wanted).abs().max() <= bound, name
    total = lse.detach().double() + residual.double()
    if abs(shift) < 1e12:
        torch.testing.assert_close(
            total - bias[0].double(), torch.full_like(total, 1024.0).log(), rtol=1e-4, atol=1e-3
        )


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("factor", [1e-4, 10.0, 40.0])
def test_scores_of_any_size(factor: float, dtype: torch.dtype, device: torch.device) -> None:
    """From weights that are all equal to weights that are 0 or 1."""
    args = arguments((40, 70), (32, 32), "unbatched", dtype=dtype, scale=0.3, device=device)
    args = Arguments((args.query * factor), args.key, args.value, scale=args.scale)
    go = torch.randn_like(args.query)
    check(args, go)


@pytest.mark.isa
def test_scores_beyond_the_range_of_float16(device: torch.device) -> None:
    """Scores of 90000 do not fit float16; accumulated in float32 they are ordinary numbers."""
    q = torch.full((1, 3, 64), 37.5, dtype=torch.float16, device=device)
    k = torch.full((1, 5, 64), 37.5, dtype=torch.float16, device=device)
    k[:, 2] = -37.5
    v = torch.randn(1, 5, 8, device=device).half()
    output, lse, _ = ops.attention_forward(q, k, v, scale=1.0)
    expected = exact(q, k, v, scale=1.0)
    assert lse.dtype == torch.float32 and lse.min() > 65504
    torch.testing.assert_close(lse.double().cpu(), expected.logsumexp, rtol=1e-6, atol=0)
    torch.testing.assert_close(output.double().cpu(), expected.output, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", HALF.values(), ids=HALF)
def test_sums_over_many_rows_are_not_rounded_on_the_way(
    dtype: torch.dtype, device: torch.device
) -> None:
    """4096 equal terms: a 16-bit sum would stop growing long before the end."""
    rows = 4096
    q = torch.zeros(1, rows, 8, dtype=dtype, device=device)
    k, v = (torch.ones(1, 1, 8, dtype=dtype, device=device) for _ in range(2))
    go = torch.full((1, rows, 8), 0.25, dtype=dtype, device=device)
    got = operator_results(
        Arguments(q, k, v, bias=torch.zeros(1, 1, dtype=dtype, device=device)), go, None
    )
    assert (got.grad_value == 0.25 * rows).all()
    gl = torch.full((1, rows), 0.25, device=device)
    got = operator_results(
        Arguments(q + 1, k, v, bias=torch.zeros(1, dtype=dtype, device=device), scale=1.0), None, gl
    )
    assert (got.grad_bias == 0.25 * rows).all() and (got.grad_key == 0.25 * rows).all()


@pytest.mark.parametrize("dtype", HALF.values(), ids=HALF)
def test_values_at_the_top_of_the_range(dtype: torch.dtype, device: torch.device) -> None:
    """An average of numbers near the largest one is such a number, not an overflow.

    Weights are divided by their sum at the end, so that the sum of all values has to fit float32.
    """
    keys = 70
    top = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max / 128)
    q, k = (torch.randn(2, keys, 16, device=device).to(dtype) for _ in range(2))
    output = ops.attention(q, k, torch.full((2, keys, 16), top, dtype=dtype, device=device))
    torch.testing.assert_close(
        output.double(), torch.full_like(output, top).double(), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_subnormal_values_are_kept(dtype: torch.dtype, device: torch.device) -> None:
    """But for bfloat16 where its own dot products serve: they take them for 0."""
    tiny = torch.finfo(dtype).tiny
    value = torch.full((1, 9, 20), tiny / 4, dtype=dtype, device=device)
    q = torch.randn(1, 20, 8, device=device).to(dtype)  # as many as fill a tile
    k = torch.randn(1, 9, 8, device=device).to(dtype)
    output = ops.attention(q, k, value)
    expected = 0.0 if takes_subnormals_for_zero(dtype, device) else tiny / 4
    torch.testing.assert_close(
        output.double(), torch.full_like(output, expected).double(), rtol=0.05, atol=0
    )


@pytest.mark.isa
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_dominant_key(where: str, device: torch.device) -> None:
    """The running maximum changes in one tile: what came before is rescaled."""
    keys = 300
    column = {"first": 0, "middle": 150, "last": keys - 1}[where]
    args = arguments((40, keys), (16, 16), "unbatched", device=device)
    for size in (1.0, 8.0, 60.0, 300.0):
        bias = torch.zeros(keys, device=device)
        bias[column] = size
        call = Arguments(*args.tensors, bias=bias)
        go = torch.randn_like(args.query)
        check(call, go)


@pytest.mark.isa
@pytest.mark.parametrize("direction", [1, -1])
def test_a_maximum_that_grows_with_every_key(direction: int, device: torch.device) -> None:
    keys = 400
    args = arguments((20, keys), (16, 16), "unbatched", device=device)
    bias = torch.linspace(-200, 200, keys, device=device) * direction
    call = Arguments(*args.tensors, bias=bias)
    go = torch.randn_like(args.query)
    check(call, go)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("operand", ["query", "key", "value"])
def test_what_is_visible_and_not_finite_is_not_hidden(
    operand: str, bad: float, dtype: torch.dtype, device: torch.device
) -> None:
    """Bad numbers come out where they went in: nothing turns them into plausible ones."""
    args = arguments((20, 30), (16, 16), "unbatched", dtype=dtype, device=device)
    getattr(args, operand)[1, 7, 3] = bad
    output, lse, _ = args()
    good = [0, 2]
    assert output[good].isfinite().all() and lse[good].isfinite().all()
    if operand == "query":
        assert not output[1, 7].isfinite().any() and not lse[1, 7].isfinite()
        assert output[1, :7].isfinite().all() and output[1, 8:].isfinite().all()
    elif operand == "key" and bad != bad:
        assert output[1].isnan().all() and lse[1].isnan().all()
    elif operand == "key":
        positive = args.query[1, :, 3] > 0
        assert not output[1, positive].isfinite().any()
        assert output[1, ~positive].isfinite().all()  # a score of -inf is a weight of 0
    else:
        assert not output[1, :, 3].isfinite().any() and lse[1].isfinite().all()
        rest = torch.arange(16, device=device) != 3
        assert output[1][:, rest].isfinite().all()


@pytest.mark.parametrize("cotangent", ["output", "logsumexp"])
def test_a_cotangent_that_is_not_finite_spoils_its_row_alone(
    cotangent: str, device: torch.device
) -> None:
    args = arguments((20, 30), (16, 16), "unbatched", device=device)
    go, gl = torch.randn_like(args.query), torch.randn(3, 20, device=device)
    (go if cotangent == "output" else gl)[1, 7] = torch.nan
    got = operator_results(args, go, gl)
    assert got.grad_query[1, 7].isnan().all() and got.grad_key[1].isnan().all()
    got.grad_query[1, 7] = 0
    assert got.grad_query.isfinite().all()
    assert got.grad_key[[0, 2]].isfinite().all() and got.grad_value[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, 1e-30, 1e4])
def test_any_finite_scale(scale: float, dtype: torch.dtype, device: torch.device) -> None:
    args = arguments(
        (33, 40), (16, 16), "grouped", masking="causal", dtype=dtype, scale=scale, device=device
    )
    check(args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_positive_infinite_bias_is_not_silently_finite(
    dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments((4, 9), dtype=dtype, device=device)
    args.bias = torch.zeros(9, dtype=dtype, device=device)
    args.bias[3] = torch.inf
    output, lse, _ = args()
    assert not output.isfinite().any() and not lse.isfinite().any()
