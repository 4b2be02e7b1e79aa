"""The accuracy rule: at most twice the error of plain PyTorch, plus 4 ulp of the largest value."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from calls import TANGENTS, TENSORS, Arguments, Results, operator_results
from plain import yardsticks
from reference import exact
from torch import Tensor

FACTOR = 2
ULPS = 4


def ulp(value: float, dtype: torch.dtype) -> float:
    """Distance between neighbouring numbers of `dtype` at `value`."""
    info = torch.finfo(dtype)
    _, exponent = math.frexp(max(abs(value), info.tiny))  # value = fraction · 2^exponent
    return info.eps * 2.0 ** (exponent - 1)


def largest_finite(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def assert_same_nonfinite(name: str, got: Tensor, expected: Tensor) -> None:
    """NaN where NaN is expected, the same infinities where they are, and nowhere else."""
    expected = expected.to(got.dtype)
    wrong = (got.isnan() != expected.isnan()) | (got.isinf() != expected.isinf())
    wrong |= expected.isinf() & got.isinf() & (got != expected)
    if wrong.any():
        index = wrong.nonzero()[0].tolist()
        raise AssertionError(
            f"{name}{index}: got {got[tuple(index)].item()},"
            f" expected {expected[tuple(index)].item()}"
            f" ({int(wrong.sum())} of {wrong.numel()} entries wrong in being finite or not)"
        )


def assert_accurate(
    name: str,
    got: Tensor | None,
    expected: Tensor,
    plain: list[Tensor],
    *,
    term: float = 0.0,
) -> None:
    """Checks one tensor by the rule.

    Args:
        name: what to call the tensor in the message.
        got: the operator's result.
        expected: the float64 oracle's result.
        plain: results of plain PyTorch operations in the same dtype, of which the worst counts.
        term: one ulp of the largest number that was added up, where it may exceed all results.
    """
    assert got is not None, f"{name}: got no tensor"
    assert got.shape == expected.shape, f"{name}: got shape {got.shape}, expected {expected.shape}"
    assert got.dtype == plain[0].dtype, f"{name}: got {got.dtype}, expected {plain[0].dtype}"
    got = got.detach().cpu()
    assert_same_nonfinite(name, got, expected)
    finite = got.isfinite() & expected.isfinite()
    error = (got.double() - expected).abs().where(finite, 0)
    if error.numel() == 0:
        return
    yardstick = max(
        largest_finite((x.detach().cpu().double() - expected).where(finite, 0)) for x in plain
    )
    bound = FACTOR * yardstick + ULPS * max(ulp(largest_finite(expected), got.dtype), term)
    if error.max() > bound:
        index = tuple(x.item() for x in torch.unravel_index(error.argmax(), error.shape))
        raise AssertionError(
            f"{name}{list(index)}: got {got[index].item()!r}, expected {expected[index].item()!r};"
            f" error {error[index].item():.3g} > bound {bound:.3g}"
            f" (plain PyTorch errs by {yardstick:.3g};"
            f" {int((error > bound).sum())} of {error.numel()} entries are beyond the bound)"
        )


def assert_results_accurate(
    got: Results, expected: Results, plain: list[Results], names: Iterable[str] = TENSORS
) -> None:
    """Checks every tensor that the oracle has.

    The terms of a derivative depend on the output, so that their ulp is one of its dtype; those of
    logsumexp's do not.
    """
    for name, wanted in expected.tensors.items():
        if name not in names:
            continue
        dtype = (got.logsumexp if name.startswith("logsumexp") else got.output).dtype
        term = ulp(expected.terms.get(name, 0.0), dtype)
        others = [getattr(x, name) for x in plain]
        assert_accurate(name, getattr(got, name), wanted, others, term=term)


def check(
    args: Arguments,
    grad_output: Tensor | None = None,
    grad_logsumexp: Tensor | None = None,
    direction: dict[str, Tensor] | None = None,
) -> Results:
    """Runs every operator there is something for; returns what they gave, if it is accurate."""
    given = {
        "grad_output": grad_output,
        "grad_logsumexp": grad_logsumexp,
        "direction": direction,
    }
    got = operator_results(args, **given)
    expected = exact(*args.tensors, **args.options, **given)
    plain = yardsticks(*args.tensors, **args.options, **given)
    assert_results_accurate(got, expected, plain)
    if got.second_query is not None:  # the tangents came from attention_second_order
        alone = operator_results(args, direction=direction)
        assert_results_accurate(alone, expected, plain, TANGENTS)
    return got


def assert_bitwise_equal(name: str, got: Tensor, expected: Tensor) -> None:
    """The same bits, NaN included."""
    assert got.shape == expected.shape and got.dtype == expected.dtype, (got.shape, expected.shape)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[got.element_size()]
    a, b = got.detach().contiguous().view(bits), expected.detach().contiguous().view(bits)
    different = a != b
    if different.any():
        index = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}{list(index)}: got {got[index].item()!r}, expected {expected[index].item()!r};"
            f" {int(different.sum())} of {different.numel()} entries differ"
        )
