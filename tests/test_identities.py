"""Identities between the operators that hold for any attention, whatever the options: no oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calls import (
    LEAVES,
    Arguments,
    backward,
    cotangents,
    direction,
    second_order,
    tangent,
)
from cases import ALL_OPTIONS, arguments
from torch import Tensor

CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"leading": "grouped", "masking": "bias_mask_causal"},
    "window": {"window": "narrow_bottom_right", "slopes": "sample"},
    "softcap": {"softcap": 0.7, "sink": "cell"},
    "dropout": {"dropout_p": 0.3, "leading": "multi_query"},
    "everything": ALL_OPTIONS,
}


@pytest.fixture(params=CHOICES.values(), ids=CHOICES)
def args(request: pytest.FixtureRequest, device: torch.device) -> Arguments:
    return arguments((70, 101), (8, 12), dtype=torch.float64, **request.param, device=device)


def inner(a: Any, b: Any) -> Tensor:
    """Of as many pairs of tensors as there are."""
    pairs = [(x, y) for x, y in zip(a, b, strict=False) if x is not None and y is not None]
    return sum((x * y).sum() for x, y in pairs)


def ordered(moving: dict[str, Tensor]) -> list[Tensor | None]:
    """Tangents in the order of gradients; those of what is hidden are zero."""
    return [moving.get(name) for name in LEAVES]


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_backward_is_the_adjoint_of_tangent(args: Arguments) -> None:
    """<gradients, direction> = <grad_output, output_tangent> + <grad_lse, lse_tangent>."""
    grads, moving = cotangents(args), direction(args)
    tangents = tangent(args, moving)
    assert_close(inner(backward(args, *grads), ordered(moving)), inner(grads, tangents))


def test_second_derivatives_are_symmetric(args: Arguments) -> None:
    """The derivative along one direction and then another is the same the other way round."""
    grads, a, b = cotangents(args), direction(args), direction(args)
    along_a, along_b = (second_order(args, *grads, x) for x in (a, b))
    assert inner(along_a, ordered(b)).abs() > 1e-3
    assert_close(inner(along_a, ordered(b)), inner(along_b, ordered(a)))


def test_second_order_is_linear_in_cotangents_and_direction(args: Arguments) -> None:
    (go, gl), (ho, hl), a, b = cotangents(args), cotangents(args), direction(args), direction(args)
    both = {name: 2 * a[name] - 3 * b[name] for name in a}
    sums = second_order(args, go - 5 * ho, gl - 5 * hl, both)
    parts = [second_order(args, *x, y) for y in (a, b) for x in ((go, gl), (ho, hl))]
    for total, ga, ha, gb, hb in zip(sums[:6], *(x[:6] for x in parts), strict=True):
        if total is not None:
            assert_close(total, 2 * (ga - 5 * ha) - 3 * (gb - 5 * hb))


def test_attention_is_linear_in_value(args: Arguments) -> None:
    """Euler: derivatives with respect to value and its tangent give back what they came from."""
    (go, _), moving = cotangents(args), direction(args)
    assert_close(tangent(args, {"value": args.value})[0], args()[0])
    first = backward(args, go, None)
    assert_close(inner([first[2]], [args.value]), inner([go], args()[:1]))
    second = second_order(args, go, None, moving)
    by_value = inner([second[2], first[2]], [args.value, moving["value"]])
    assert_close(by_value, inner([go], second[6:7]))


def test_scores_depend_on_the_product_of_query_and_key(args: Arguments) -> None:
    """A larger query and a smaller key, or more of one and less of the other, change nothing."""
    along = {"query": args.query, "key": -args.key}
    output_tangent, lse_tangent = tangent(args, along)
    assert_close(output_tangent, torch.zeros_like(output_tangent))
    assert_close(lse_tangent, torch.zeros_like(lse_tangent))
    gradients = backward(args, *cotangents(args))
    assert_close(inner(gradients[:1], [args.query]), inner(gradients[1:2], [args.key]))


def test_a_constant_added_to_all_scores_changes_logsumexp_alone(args: Arguments) -> None:
    bias = torch.randn(70, 101, dtype=torch.float64, device=args.query.device)
    args.bias = bias if args.bias is None else args.bias + bias
    grads, moving = cotangents(args), direction(args)
    along = {name: torch.ones_like(x) for name, x in moving.items() if name in ("bias", "sink")}
    output, lse, _ = args()
    has_score = lse > -torch.inf

    output_tangent, lse_tangent = tangent(args, along)
    assert_close(output_tangent, torch.zeros_like(output))
    assert_close(lse_tangent, has_score.double())
    by_shift = inner(backward(args, *grads)[3::2], ordered(along)[3::2])
    assert_close(by_shift, grads[1][has_score].sum())
    by_shift = inner(second_order(args, *grads, moving)[3:6:2], ordered(along)[3::2])
    assert_close(by_shift, torch.zeros_like(by_shift))

    args.bias = args.bias + 7
    args.sink = None if args.sink is None else args.sink + 7
    assert_close(args()[0], output)
    assert_close(args()[1], lse + 7)


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_predict_the_next_value(order: int, args: Arguments) -> None:
    """f(x + h) + f(x - h) - 2 f(x) is of second order, f(x + h) - f(x - h) of first."""
    grads, moving = cotangents(args), direction(args)
    step = 1e-3 if order == 2 else 1e-5

    def value(sign: int) -> Tensor:
        moved = {n: getattr(args, n) + sign * step * x for n, x in moving.items()}
        output, lse, _ = Arguments(**{**vars(args), **moved})()
        return inner(grads, (output, lse.nan_to_num(neginf=0)))

    if order == 1:
        expected = inner(grads, tangent(args, moving))
        got = (value(1) - value(-1)) / (2 * step)
    else:
        expected = inner(second_order(args, *grads, moving), ordered(moving))
        got = (value(1) + value(-1) - 2 * value(0)) / step**2
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
