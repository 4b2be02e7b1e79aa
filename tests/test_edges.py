"""All four operators where numbers are as large, as small, or as little numbers as they can be.

What is hidden is absent, whatever it holds; what is visible and not finite comes out again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from calls import (
    GRADIENTS,
    SECOND,
    Arguments,
    cotangents,
    direction,
    operator_results,
    takes_subnormals_for_zero,
)
from cases import ALL_OPTIONS, DTYPES, arguments
from compare import assert_bitwise_equal, check
from reference import exact
from torch import Tensor

Given = tuple[Tensor, Tensor, dict[str, Tensor]]


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def everything(args: Arguments) -> Given:
    return *cotangents(args), direction(args)


@pytest.mark.isa
@pytest.mark.parametrize("queries", [5, 40])
@pytest.mark.parametrize("by", ["scale", "bias"])
def test_scores_of_ten_thousand(
    by: str, queries: int, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments((queries, 101), (16, 16), "grouped", dtype=dtype, device=device)
    if by == "scale":
        args.scale = 1e3  # times some ten
    else:
        signs = torch.randint(0, 2, (queries, 101), device=device) * 2 - 1
        args.bias = (1e4 * signs).to(dtype)
    check(args, *everything(args))


@pytest.mark.isa
@pytest.mark.parametrize("rows", ["some_keys", "all_keys"])
def test_keys_masked_with_the_smallest_number(
    rows: str, dtype: torch.dtype, device: torch.device
) -> None:
    """A number, not -inf: beside others it is nothing, alone it is as good as any."""
    args = arguments((40, 101), (16, 16), "grouped", dtype=dtype, device=device)
    args.bias = torch.zeros(40, 101, dtype=dtype, device=device)
    args.bias[:, 60:] = torch.finfo(dtype).min
    if rows == "all_keys":
        args.bias[20:25] = torch.finfo(dtype).min
    got = check(args, *everything(args))
    if rows == "all_keys" and dtype != torch.float16:  # whose smallest number is only -65504
        mean = args.value.double().mean(-2, keepdim=True).repeat_interleave(2, -3)
        mean = mean.expand(-1, -1, 5, -1)
        tolerance = 2e-2 if dtype.itemsize == 2 else 1e-6
        torch.testing.assert_close(
            got.output[..., 20:25, :].double(), mean, rtol=tolerance, atol=tolerance
        )


@pytest.mark.isa
def test_all_scores_equal(dtype: torch.dtype, device: torch.device) -> None:
    args = arguments((40, 101), (16, 16), "grouped", dtype=dtype, device=device)
    args.query, args.key = torch.zeros_like(args.query), torch.ones_like(args.key)
    check(args, *everything(args))
    args.query = torch.full_like(args.query, 3)
    check(args, *everything(args))


@pytest.mark.parametrize("tiny", ["value", "query", "cotangents", "direction"])
def test_subnormal_numbers(tiny: str, dtype: torch.dtype, device: torch.device) -> None:
    args = arguments((40, 101), (16, 16), "grouped", dtype=dtype, device=device)
    go, gl, moving = everything(args)

    def small(x: Tensor) -> Tensor:
        return x * (torch.finfo(dtype).tiny / 16)

    if tiny in ("value", "query"):
        setattr(args, tiny, small(getattr(args, tiny)))
        assert 0 < getattr(args, tiny).abs().max() < torch.finfo(dtype).tiny
    elif tiny == "cotangents":
        go, gl = small(go), small(gl)
    else:
        moving = {name: small(x) for name, x in moving.items()}
    for_zero = tiny in ("value", "cotangents") and takes_subnormals_for_zero(dtype, device)
    got = (operator_results if for_zero else check)(args, go, gl, moving)
    kinds = {"cotangents": got.grad_value, "direction": got.output_tangent, "value": got.output}
    largest = kinds.get(tiny, got.second_query).abs().max()
    assert largest == 0 if for_zero else largest > 0


# What is hidden.

BAD = {"nan": torch.nan, "inf": torch.inf, "minus_inf": -torch.inf}


def hiding(how: str, args: Arguments) -> tuple[Arguments, slice]:
    """Arguments of 40 queries and 101 keys that hide some keys, and those keys."""
    device = args.query.device
    if how == "causal":
        return replace(args, is_causal=True), slice(40, None)
    if how == "window":
        return replace(args, window_left=30, window_right=10), slice(50, None)
    visible = torch.rand(40, 101, device=device) < 0.7
    columns = slice(3, 101, 7)
    visible[:, columns] = False
    if how == "mask":
        return replace(args, mask=visible), columns
    bias = torch.zeros(40, 101, dtype=args.query.dtype, device=device)
    return replace(args, bias=bias.masked_fill(~visible, -torch.inf)), columns


@pytest.mark.isa
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("how", ["causal", "window", "mask", "bias"])
def test_hidden_keys_reach_nothing(
    how: str, bad: float, dtype: torch.dtype, device: torch.device
) -> None:
    """Keys and values that no query sees, and their tangents, are not finite."""
    args = arguments((40, 101), (16, 24), "grouped", sink="head", dtype=dtype, device=device)
    args, hidden = hiding(how, args)
    go, gl, moving = everything(args)
    tensors = (args.key, args.value, moving["key"], moving["value"])
    for x in tensors:
        x[..., hidden, :] = 0
    if "bias" in moving:
        moving["bias"][:, hidden] = 0
    clean = operator_results(args, go, gl, moving)
    for x in tensors:
        x[..., hidden, 5] = bad
    if "bias" in moving:
        moving["bias"][:, hidden] = bad
    got = operator_results(args, go, gl, moving)
    # Another path may run, so not the same bits: the rounding of one operation in that dtype.
    tolerance = {8: 1e-9, 4: 1e-4, 2: 4e-2}[dtype.itemsize]
    for name, x in got.tensors.items():
        expected = getattr(clean, name)
        size = max(1.0, expected[expected.isfinite()].abs().max().item())
        torch.testing.assert_close(
            x,
            expected,
            rtol=tolerance,
            atol=tolerance * size,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    for name in ("grad_key", "grad_value", "second_key", "second_value"):
        assert (getattr(got, name)[..., hidden, :] == 0).all(), name


@pytest.mark.isa
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["nan", "inf"])
def test_queries_that_see_nothing_reach_nothing(
    bad: float, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments((40, 101), (16, 24), "grouped", dtype=dtype, device=device)
    args.mask = torch.rand(40, 101, device=device) < 0.5
    args.mask[11] = False
    go, gl, moving = everything(args)
    clean = operator_results(args, go, gl, moving)
    for x in (args.query, go, moving["query"]):
        x[..., 11, :] = bad
    gl[..., 11] = bad
    got = operator_results(args, go, gl, moving)
    tolerance = {8: 1e-9, 4: 1e-4, 2: 4e-2}[dtype.itemsize]
    for name, x in got.tensors.items():
        expected = getattr(clean, name)
        size = max(1.0, expected[expected.isfinite()].abs().max().item())
        torch.testing.assert_close(
            x, expected, rtol=tolerance, atol=tolerance * size, msg=lambda m, n=name: f"{n}: {m}"
        )


# What is visible.

PLACES = ["query", "key", "value", "grad_output", "grad_logsumexp", "sink", "bias"]
PLACES += [f"{name}_tangent" for name in ("query", "key", "value", "sink", "bias")]


def spoiled(place: str, args: Arguments, given: Given, bad: float) -> None:
    go, gl, moving = given
    base, is_tangent = place.removesuffix("_tangent"), place.endswith("_tangent")
    where = {"grad_output": go, "grad_logsumexp": gl}.get(base)
    if where is None:
        where = moving[base] if is_tangent else getattr(args, base)
    index = {0: (), 1: (1,), 2: (5, 7), 3: (1, 0, 7), 4: (1, 0, 7, 3)}[where.dim()]
    where[index] = bad


@pytest.mark.isa
@pytest.mark.parametrize("place", PLACES)
def test_visible_nan_goes_exactly_where_it_belongs(
    place: str, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(
        (20, 70), leading="grouped", masking="bias_square", sink="head", dtype=dtype, device=device
    )
    args.bias = args.bias.nan_to_num(neginf=0).triu(-60).masked_fill(args.bias == 0, -torch.inf)
    args.bias[5, 7] = 0
    given = everything(args)
    spoiled(place, args, given, torch.nan)
    got = operator_results(args, *given)
    expected = exact(
        *args.tensors,
        **args.options,
        **dict(zip(("grad_output", "grad_logsumexp", "direction"), given, strict=True)),
    )
    some = False
    for name, x in expected.tensors.items():
        wrong = getattr(got, name).isnan().cpu() != x.isnan()
        assert not wrong.any(), f"{name}{wrong.nonzero()[0].tolist()}: {int(wrong.sum())} wrong"
        some = some or bool(x.isnan().any() and not x.isnan().all())
    assert some


@pytest.mark.parametrize("place", PLACES)
def test_visible_infinity_is_not_silently_finite(
    place: str, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(
        (20, 70), masking="bias_square", sink="head", dtype=dtype, scale=0.1, device=device
    )
    args.bias = args.bias.nan_to_num(neginf=0)
    given = everything(args)
    spoiled(place, args, given, torch.inf)
    got = operator_results(args, *given)
    touched = {
        "query": GRADIENTS[:1] + SECOND[:1],
        "grad_output": ("grad_query", "second_query"),
        "grad_logsumexp": ("grad_query", "second_query"),
    }.get(place, ("second_query",) if "tangent" in place else ("output", "second_query"))
    for name in touched:
        assert not getattr(got, name).isfinite().all(), name


@pytest.mark.isa
@pytest.mark.parametrize("lengths", [(5, 40), (20, 40), (20, 200)])
def test_visible_keys_with_scores_of_minus_infinity_weigh_nothing(
    lengths: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(lengths, (16, 16), dtype=dtype, device=device)
    args.query.fill_(-torch.inf)
    args.key.abs_().add_(1)
    args.value[..., 7, :] = torch.inf  # which a weight of 0 meets
    output, lse, _ = args()
    assert (output == 0).all() and (lse == -torch.inf).all()


def test_infinite_sink_takes_everything(device: torch.device) -> None:
    """e^inf / e^inf has no value, so that nothing plausible comes out."""
    args = arguments((9, 20), sink="cell", dtype=torch.float64, device=device)
    args.sink.fill_(torch.inf)
    output, lse, _ = args()
    assert not lse.isfinite().any() and not (output.isfinite() & (output != 0)).any()


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all_options"])
def test_a_sample_that_is_not_finite_spoils_no_other(
    options: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments((70, 101), dtype=dtype, **options, device=device)
    given = everything(args)
    clean = operator_results(args, *given)
    for x in (*args.tensors, given[0], given[1], *(given[2][x] for x in ("query", "key", "value"))):
        x[1] = torch.nan
    got = operator_results(args, *given)
    assert not got.output[1].isfinite().all()
    for name, x in got.tensors.items():
        if x.shape[0] == 2 and x.dim() > 2:
            assert_bitwise_equal(name, x[0], getattr(clean, name)[0])
