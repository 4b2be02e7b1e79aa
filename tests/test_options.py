"""What each option stands for, said in terms of others: values and derivatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from calls import Arguments, Results, cotangents, direction, operator_results
from cases import ALL_OPTIONS, LEADING, PER_HEAD, WINDOWS, arguments
from compare import assert_bitwise_equal, check
from reference import distances, per_head, visibility
from torch import Tensor

LENGTHS = [(70, 101), (101, 70), (200, 17), (17, 200)]


def assert_close(got: Results, expected: Results, tolerance: float = 1e-10) -> None:
    """The same to rounding errors in float64, as far as both have it."""
    both = got.tensors.keys() & expected.tensors.keys()
    assert {"output", "grad_query", "output_tangent", "second_query"} <= both
    for name in both:
        a, b = getattr(got, name), getattr(expected, name)
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_same(got: Results, expected: Results) -> None:
    assert got.tensors.keys() == expected.tensors.keys()
    for name, x in expected.tensors.items():
        assert_bitwise_equal(name, getattr(got, name), x)


def doubles(lengths: tuple[int, int] = (70, 101), **more: Any) -> tuple[Arguments, tuple[Any, ...]]:
    """Arguments in float64, with cotangents and a direction."""
    args = arguments(lengths, (8, 12), dtype=torch.float64, **more)
    return args, (*cotangents(args), direction(args))


@pytest.mark.parametrize("window", [x for x in WINDOWS if x != "no_window"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_window_is_the_mask_it_stands_for(
    lengths: tuple[int, int], is_causal: bool, window: str, device: torch.device
) -> None:
    args, given = doubles(lengths, window=window, leading="grouped", device=device)
    args.is_causal = is_causal
    visible = visibility(args).to(device)
    assert visible.any()
    masked = Arguments(*args.tensors, mask=visible)
    got = operator_results(args, *given)
    assert_close(got, operator_results(masked, *given))
    assert (got.output[~visible.any(-1)] == 0).all()
    assert (got.logsumexp == -torch.inf).equal(~visible.any(-1))


@pytest.mark.parametrize("bottom_right", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_causal_is_a_window_that_ends_at_the_query(
    lengths: tuple[int, int], bottom_right: bool, device: torch.device
) -> None:
    args, given = doubles(lengths, device=device)
    args.bottom_right = bottom_right
    expected = operator_results(replace(args, window_right=0), *given)
    for right in (None, 0, 5, 2**62):
        causal = replace(args, is_causal=True, window_right=right)
        assert_same(operator_results(causal, *given), expected)


def test_with_equal_lengths_alignment_does_not_matter(device: torch.device) -> None:
    args, given = doubles((77, 77), window="narrow", slopes="head", device=device)
    expected = operator_results(args, *given)
    assert_same(operator_results(replace(args, bottom_right=True), *given), expected)


def test_the_widest_window_hides_nothing(device: torch.device) -> None:
    """Extents whose sum with a position has no int64."""
    args, given = doubles(slopes="head", device=device)
    expected = operator_results(args, *given)
    for extent in (101, 2**31, 2**62, 2**63 - 1):
        wide = replace(args, window_left=extent, window_right=extent)
        assert_same(operator_results(wide, *given), expected)


def test_a_window_of_one_key_copies_its_value(device: torch.device) -> None:
    args = arguments((150, 160), (16, 24), "batched", window="diagonal", device=device)
    assert_bitwise_equal("output", args()[0], args.value[..., :150, :].contiguous())
    args.bottom_right = True
    assert_bitwise_equal("output", args()[0], args.value[..., 10:, :].contiguous())


@pytest.mark.parametrize("bottom_right", [False, True])
@pytest.mark.parametrize("over", [x for x in PER_HEAD if x != "absent"])
def test_slopes_are_the_bias_they_stand_for(
    over: str, bottom_right: bool, device: torch.device
) -> None:
    args, (go, gl, moving) = doubles(slopes=over, leading="five_dims_grouped", device=device)
    args.bottom_right = bottom_right
    distance = distances(args).abs().to(device)

    def bias(slopes: Tensor) -> Tensor:
        return -per_head(slopes, args)[..., None, None] * distance

    biased = Arguments(*args.tensors, bias=bias(args.slopes))
    moved = moving | {"bias": bias(moving["slopes"])}
    del moved["slopes"]
    got, expected = operator_results(args, go, gl, moving), operator_results(biased, go, gl, moved)
    assert_close(got, expected, 1e-9)
    for kind in ("grad", "second"):
        gradient = -(getattr(expected, f"{kind}_bias") * distance).sum((-2, -1))
        gradient = gradient.sum_to_size(args.slopes.shape)
        torch.testing.assert_close(getattr(got, f"{kind}_slopes"), gradient)


@pytest.mark.parametrize("masking", ["none", "bias_full"])
@pytest.mark.parametrize("over", [x for x in PER_HEAD if x != "absent"])
def test_a_sink_is_one_more_key_without_a_value(
    over: str, masking: str, device: torch.device
) -> None:
    args, (go, gl, moving) = doubles(sink=over, masking=masking, leading="grouped", device=device)
    n, m = 70, 101

    def with_key(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x[..., :1, :])], -2)

    def with_column(bias: Tensor | None, sink: Tensor) -> Tensor:
        column = per_head(sink, args)[..., None, None].expand(2, 4, n, 1)
        zeros = torch.zeros(2, 4, n, m, dtype=torch.float64, device=device)
        return torch.cat([zeros if bias is None else bias.expand(zeros.shape), column], -1)

    longer = Arguments(
        args.query, *map(with_key, args.tensors[1:]), bias=with_column(args.bias, args.sink)
    )
    moved = {name: with_key(moving[name]) for name in ("key", "value")}
    moved |= {
        "query": moving["query"],
        "bias": with_column(moving.get("bias"), moving["sink"]),
    }
    got, expected = operator_results(args, go, gl, moving), operator_results(longer, go, gl, moved)
    for kind in ("grad", "second"):
        bias = getattr(expected, f"{kind}_bias")
        sink = bias[..., m].sum(-1).sum_to_size(args.sink.shape)
        torch.testing.assert_close(getattr(got, f"{kind}_sink"), sink)
        setattr(expected, f"{kind}_bias", bias[..., :m])
        for name in ("key", "value"):
            longer_gradient = getattr(expected, f"{kind}_{name}")
            setattr(expected, f"{kind}_{name}", longer_gradient[..., :m, :])
    assert_close(got, expected)


def test_a_sink_of_minus_infinity_is_none(device: torch.device) -> None:
    args, (go, gl, moving) = doubles(masking="mask_full", sink="head", device=device)
    args.sink.fill_(-torch.inf)
    got = operator_results(args, go, gl, moving)
    del moving["sink"]
    assert_close(got, operator_results(replace(args, sink=None), go, gl, moving))
    for x in got.tensors.values():
        assert not x.isnan().any()
    assert (got.grad_sink == 0).all() and (got.second_sink == 0).all()
    assert (got.logsumexp == -torch.inf).any()


def test_a_large_softcap_is_none(device: torch.device) -> None:
    args, given = doubles(device=device)
    capped = operator_results(replace(args, softcap=1e7), *given)
    assert_close(capped, operator_results(args, *given))


def test_softcap_bounds_the_scores_but_not_the_bias(device: torch.device) -> None:
    args, _ = doubles(device=device)
    args = replace(args, scale=100.0, softcap=0.25, bias=torch.full_like(args.query[..., :1], 3))
    lse = args()[1]
    averages = lse - torch.tensor(101.0, dtype=torch.float64).log()
    assert ((averages - 3).abs() <= 0.25 + 1e-12).all() and (averages != 3).all()


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("over", [x for x in PER_HEAD if x != "absent"])
def test_numbers_per_head_in_any_shape(over: str, leading: str, device: torch.device) -> None:
    """Values as if expanded to every head, gradients summed over where they were not."""
    args, given = doubles((20, 30), slopes=over, sink=over, leading=leading, device=device)
    names = ("slopes", "sink")
    wide = replace(args, **{x: per_head(getattr(args, x), args).contiguous() for x in names})
    moved = given[2] | {x: per_head(given[2][x], args).contiguous() for x in names}
    got = operator_results(args, *given)
    expected = operator_results(wide, given[0], given[1], moved)
    for result in (f"{kind}_{name}" for kind in ("grad", "second") for name in names):
        x, shape = getattr(expected, result), getattr(got, result).shape
        summed = x.sum_to_size(shape) if args.query.dim() > 2 else x.reshape(shape)
        setattr(expected, result, summed)
    assert_close(got, expected)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("why", ["no_keys", "mask", "window"])
@pytest.mark.parametrize("sink", ["absent", "full"])
def test_nothing_to_see(sink: str, why: str, dtype: torch.dtype, device: torch.device) -> None:
    """The logsumexp is the sink, or -inf without one, and nothing but the sink has a gradient."""
    m = 0 if why == "no_keys" else 5
    args = arguments((140, m), leading="grouped", sink=sink, dtype=dtype, device=device)
    blind = slice(0, None)
    if why == "mask":
        args.mask = torch.zeros(1, 1, dtype=torch.bool, device=device)
    if why == "window":
        args.window_left = 1
        blind = slice(6, None)
    got = check(args, *cotangents(args), direction(args))
    assert (got.output[..., blind, :] == 0).all() and (got.output_tangent[..., blind, :] == 0).all()
    assert (got.grad_query[..., blind, :] == 0).all()
    assert (got.second_query[..., blind, :] == 0).all()
    expected = torch.full((2, 4), -torch.inf) if args.sink is None else args.sink.cpu().double()
    assert (got.logsumexp[..., blind].cpu().double() == expected[..., None]).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"dropout_p": 0.0},
        {"softcap": None},
        {"sink": None},
        {"slopes": None},
        {"bias": None},
        {"mask": None},
        {"window_left": None},
        {"window_right": None},
        {"bottom_right": False},
        {"scale": 0.1},
    ],
    ids="".join,
)
def test_each_option_matters(changed: dict[str, Any], device: torch.device) -> None:
    """Leaving one out changes what all operators give."""
    args, (go, gl, moving) = doubles(**ALL_OPTIONS, device=device)
    got = operator_results(args, go, gl, moving)
    args = replace(args, **changed)
    along = {name: moving[name] for name in args.named_leaves}
    other = operator_results(args, go, gl, along)
    for result in ("output", "grad_query", "output_tangent", "second_query"):
        assert (getattr(got, result) - getattr(other, result)).abs().max() > 1e-3, result
