"""All four operators against the oracle, with everything that can be mixed, two at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calls import cotangents, direction
from cases import ALL_OPTIONS, CASES, DTYPES, Case
from compare import check


def check_everything(case: Case, device: torch.device) -> None:
    args = case.arguments(device)
    check(args, *cotangents(args), direction(args))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_is_accurate(case: Case, device: torch.device) -> None:
    check_everything(case, device)


def some_at_every_level(values: list[int], chosen: set[int]) -> list[Any]:
    """All values at the default instruction set level, the chosen ones at the others too."""
    return [pytest.param(x, marks=[pytest.mark.isa] if x in chosen else []) for x in values]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    "size", some_at_every_level([1, 3, 40, 64, 80, 96, 111, 128, 256, 300], {3, 64, 111, 256})
)
def test_every_head_size_in_every_dtype(
    size: int, dtype: torch.dtype, device: torch.device
) -> None:
    case = Case((33, 70), (size, size), "multi_query", masking="bias_causal", dtype=dtype)
    check_everything(case, device)


# Tiles have up to 64 queries and 96 keys.
@pytest.mark.parametrize(
    "length",
    some_at_every_level(
        [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 128, 193, 257],
        {1, 7, 9, 17, 33, 65, 97, 193},
    ),
)
def test_lengths_around_vector_and_tile_sizes(length: int, device: torch.device) -> None:
    check_everything(Case((length, 66), (20, 20), masking="causal"), device)
    check_everything(Case((66, length), (20, 20), masking="bias_per_head"), device)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_all_options_at_once(dtype: torch.dtype, device: torch.device) -> None:
    check_everything(Case((131, 203), (24, 40), dtype=dtype, **ALL_OPTIONS), device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_sequence(dtype: str, device: torch.device) -> None:
    case = Case((1025, 1025), (64, 64), "unbatched", masking="causal", dtype=DTYPES[dtype])
    check_everything(case, device)
