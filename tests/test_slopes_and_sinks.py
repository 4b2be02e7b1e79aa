"""Slopes and sinks that are not finite, or shared by very many heads; windows beyond all keys."""

from __future__ import annotations

import pytest
import torch
from calls import Arguments, cotangents, direction, operator_results
from cases import arguments
from compare import check

NOT_FINITE = [torch.inf, -torch.inf, torch.nan]


def hidden_row(device: torch.device, **options: object) -> Arguments:
    """Arguments whose third query sees nothing."""
    args = arguments((9, 20), (8, 8), dtype=torch.float64, device=device, **options)
    args.mask = torch.ones(9, 20, dtype=torch.bool, device=device)
    args.mask[2] = False
    return args


@pytest.mark.parametrize("slope", NOT_FINITE)
def test_slopes_that_are_not_finite_show_nothing_hidden(slope: float, device: torch.device) -> None:
    args = hidden_row(device, slopes="cell")
    args.slopes.fill_(slope)
    args.key[..., 5, :], args.value[..., 5, :] = torch.nan, torch.nan
    args.mask[:, 5] = False
    got = operator_results(args, *cotangents(args), direction(args))
    assert (got.output[..., 2, :] == 0).all() and (got.logsumexp[..., 2] == -torch.inf).all()
    for grad in (got.grad_query, got.second_query, got.output_tangent):
        assert (grad[..., 2, :] == 0).all()
    for grad in (got.grad_key, got.second_key, got.grad_value, got.second_value):
        assert (grad[..., 5, :] == 0).all()


@pytest.mark.parametrize("tangent", NOT_FINITE)
def test_a_sink_of_minus_infinity_is_no_sink_whatever_its_tangent(
    tangent: float, device: torch.device
) -> None:
    args = hidden_row(device, sink="cell")
    args.sink.fill_(-torch.inf)
    given = *cotangents(args), direction(args)
    given[2]["sink"].fill_(tangent)
    got = operator_results(args, *given)
    args.sink = None
    given[2].pop("sink")
    wanted = operator_results(args, *given)
    for name, x in wanted.tensors.items():
        torch.testing.assert_close(getattr(got, name), x, rtol=1e-12, atol=1e-12)
    assert got.grad_sink.item() == 0 and got.second_sink.item() == 0


@pytest.mark.parametrize("sink", [torch.inf, torch.nan])
def test_a_sink_that_has_no_weight_to_give_is_nan_in_every_row(
    sink: float, device: torch.device
) -> None:
    args = hidden_row(device, sink="cell")
    args.sink.fill_(sink)
    output, logsumexp, _ = args()
    assert output.isnan().all() and logsumexp.isnan().all()


@pytest.mark.parametrize("cotangent", NOT_FINITE)
def test_what_a_row_that_sees_nothing_is_given_reaches_no_sink(
    cotangent: float, device: torch.device
) -> None:
    args = hidden_row(device, sink="cell")
    go, gl = cotangents(args)
    clean = operator_results(args, go, gl, direction(args))
    go[..., 2, :] = cotangent
    got = operator_results(args, go, gl)
    torch.testing.assert_close(got.grad_sink, clean.grad_sink, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["slopes", "sink"])
def test_gradients_shared_by_thousands_of_heads_keep_their_digits(
    name: str, device: torch.device
) -> None:
    """One number for all heads: its gradient is a sum over all of them."""
    q, k, v = (torch.randn(2000, 2, 3, 4, device=device) for _ in range(3))
    shared = Arguments(q, k, v, **{name: torch.tensor(0.3, device=device)})
    check(shared, *cotangents(shared), direction(shared))


@pytest.mark.isa
@pytest.mark.parametrize("bottom_right", [False, True])
def test_windows_that_lie_beyond_all_keys(bottom_right: bool, device: torch.device) -> None:
    args = arguments((200, 10), (8, 8), dtype=torch.float32, device=device)
    args.window_left, args.bottom_right = 0, bottom_right
    check(args, *cotangents(args), direction(args))
