"""Dropout: which weights are dropped, that all operators drop the same ones, and how many."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calls import LEAVES, Arguments, backward, cotangents, direction, operator_results
from cases import arguments
from compare import assert_bitwise_equal
from reference import kept
from torch import Tensor

ops = torch.ops.torch_ext

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 0x1234_5678_9ABC_DEF0]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 of Salmon et al. 2011: four words of 32 bits."""
    for step in range(10):
        left, right = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        keys = [
            (key[0] + step * 0x9E3779B9) % 2**32,
            (key[1] + step * 0xBB67AE85) % 2**32,
        ]
        counter = [
            (right >> 32) ^ counter[1] ^ keys[0],
            right % 2**32,
            (left >> 32) ^ counter[3] ^ keys[1],
            left % 2**32,
        ]
    return counter


def expected_mask(seed: int, heads: int, queries: int, keys: int, p: float) -> Tensor:
    """Number n of head h, query i and key j is word j % 4 of the counter (i, j / 4, h, 0)."""
    key = [seed % 2**32, (seed >> 32) % 2**32]
    threshold = min(int(p * 2**32 + 0.5), 2**32 - 1)
    mask = torch.zeros(heads, queries, keys, dtype=torch.bool)
    for h in range(heads):
        for i in range(queries):
            for j in range(keys):
                mask[h, i, j] = philox([i, j // 4, h, 0], key)[j % 4] >= threshold
    return mask


def test_philox_of_the_tests() -> None:
    """Known answers, published with the generator."""
    ones = 0xFFFFFFFF
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0] * 4, [0] * 2) == known
    known = [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox([ones] * 4, [ones] * 2) == known


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.3, 1e-12, 0.999999, 1 - 2**-40])
def test_the_mask_is_philox(p: float, seed: int, device: torch.device) -> None:
    got = ops._dropout_mask(torch.tensor(seed, device=device), 2, 5, 11, p)
    assert got.dtype == torch.bool
    assert torch.equal(got.cpu(), expected_mask(seed, 2, 5, 11, p))


def test_the_mask_of_a_batch_is_that_of_its_samples(device: torch.device) -> None:
    seeds = torch.tensor(SEEDS[:6], device=device).reshape(2, 3)
    masks = ops._dropout_mask(seeds, 3, 9, 14, 0.4)
    assert masks.shape == (2, 3, 3, 9, 14)
    for i in range(2):
        for j in range(3):
            alone = ops._dropout_mask(seeds[i, j], 3, 9, 14, 0.4)
            assert torch.equal(masks[i, j], alone)


# Statistics. Everything is a function of the seeds, so that these tests always say the same.


def deviation(counts: Tensor, size: int, p: float) -> float:
    """Standard deviations by which chi-squared of kept counts, each of `size`, is off its mean."""
    groups = counts.numel()
    chi_squared = ((counts - size * (1 - p)) ** 2 / (size * p * (1 - p))).sum().item()
    return (chi_squared - groups) / (2 * groups) ** 0.5


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_as_many_are_kept_as_should_be(p: float, device: torch.device) -> None:
    """Over all, in each sample, head, row and column, and no more evenly than by chance."""
    seeds = torch.arange(16, device=device)  # neighbours must differ as much as any others
    mask = ops._dropout_mask(seeds, 8, 96, 128, p).cpu().double()
    error = (mask.mean() - (1 - p)).abs().item()
    assert error < 4 * (p * (1 - p) / mask.numel()) ** 0.5
    for kept_dims in [(0,), (1,), (2,), (3,), (0, 1), (2, 3), (0, 3)]:
        others = [d for d in range(4) if d not in kept_dims]
        counts = mask.sum(others)
        assert abs(deviation(counts, mask.numel() // counts.numel(), p)) < 5, kept_dims


STEPS = [
    (0, 0, 0, 1), (0, 0, 0, 4), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 1),
    (0, 1, 1, 0), (1, 1, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_neighbours_are_independent(step: tuple[int, ...], device: torch.device) -> None:
    mask = ops._dropout_mask(torch.arange(16, device=device), 8, 96, 128, 0.5).cpu().double() - 0.5
    here = mask[tuple(slice(0, size - x) for x, size in zip(step, mask.shape, strict=True))]
    there = mask[tuple(slice(x, None) for x in step)]
    correlation = (here * there).mean().item() / 0.25
    assert abs(correlation) < 5 / here.numel() ** 0.5


@pytest.mark.parametrize("dims", [(2, 3), (0, 1)], ids=["row_and_column", "sample_and_head"])
def test_exchanged_positions_are_independent(dims: tuple[int, int], device: torch.device) -> None:
    mask = ops._dropout_mask(torch.arange(8, device=device), 8, 96, 96, 0.5).cpu().double() - 0.5
    a, b = mask.movedim(dims, (0, 1)), mask.transpose(*dims).movedim(dims, (0, 1))
    upper = torch.ones(a.shape[:2], dtype=torch.bool).triu(1)
    pairs = (a * b)[upper]
    assert pairs.mean().abs().item() / 0.25 < 5 / pairs.numel() ** 0.5


# The operators


def dropping(
    lengths: tuple[int, int],
    head_sizes: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    """Half of the weights dropped, none of them so small that it rounds to zero."""
    args = arguments(
        lengths, head_sizes, "grouped", dtype=dtype, scale=0.1, dropout_p=0.5, device=device
    )
    args.key.clamp_(-2, 2)
    return args


def identity_like(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(x.shape).contiguous()


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_operators_drop_the_same_weights(dtype: torch.dtype, device: torch.device) -> None:
    """What multiplies an identity matrix can be seen in the result."""
    n, m = 67, 101
    args = dropping((n, m), (8, m), device, dtype)
    args.value = identity_like(args.value)
    keep = kept(args).to(device)
    assert torch.equal(args()[0] != 0, keep)
    along = direction(args)
    along["value"] = identity_like(args.value)
    only = operator_results(args, direction={"value": along["value"]})
    assert torch.equal(only.output_tangent != 0, keep)

    args = dropping((n, m), (8, n), device, dtype)
    by_group = kept(args).to(device).unflatten(1, (2, 2))
    go = identity_like(args()[0])
    for head in range(2):  # one of each group, so that sums hide nothing
        one = go.unflatten(1, (2, 2)).clone()
        one[:, :, 1 - head] = 0
        got = operator_results(args, one.flatten(1, 2), None, direction(args))
        dropped = by_group[:, :, head]
        assert torch.equal(got.grad_value.mT != 0, dropped)
        changed = (got.second_value.mT != 0) & ~dropped
        assert not changed.any() and (got.second_value != 0).sum() > 0.9 * dropped.sum()


@pytest.mark.isa
def test_what_is_kept_grows_by_what_is_dropped(device: torch.device) -> None:
    args = dropping((70, 101), (8, 101), device, torch.float64)
    args.value = identity_like(args.value)
    weights = replace(args, dropout_p=0.0)()[0]
    torch.testing.assert_close(args()[0], weights * kept(args).to(device) / 0.5)


def test_on_average_dropout_changes_nothing(device: torch.device) -> None:
    args = arguments((5, 40), leading="one_head", dtype=torch.float64, device=device)
    seeds = torch.arange(4000, device=device)
    many = Arguments(
        *(x.expand(4000, 1, *x.shape) for x in args.tensors), dropout_p=0.3, seed=seeds
    )
    outputs = many()[0]
    error = outputs.mean(0)[0] - args()[0]
    assert (error.abs() < 5 * outputs.std(0)[0] / 4000**0.5).all()


def test_logsumexp_knows_nothing_of_dropout(device: torch.device) -> None:
    args = dropping((70, 101), (8, 8), device)
    for name, a, b in zip(
        ("logsumexp", "residual"), args()[1:], replace(args, dropout_p=0.0)()[1:], strict=True
    ):
        assert_bitwise_equal(name, a, b)


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_without_dropout_the_seed_is_ignored(seed: int | None, device: torch.device) -> None:
    args = arguments((70, 101), device=device)
    given = (*cotangents(args), direction(args))
    expected = operator_results(args, *given)
    args.seed = None if seed is None else torch.tensor(seed, device=device)
    for name, x in operator_results(args, *given).tensors.items():
        assert_bitwise_equal(name, x, getattr(expected, name))


@pytest.mark.parametrize("p", [1e-12, 0.999999, 1 - 2**-40])
def test_nearly_nothing_and_nearly_everything_dropped(p: float, device: torch.device) -> None:
    args = arguments((70, 101), dropout_p=p, dtype=torch.float64, device=device)
    (go, gl), moving = cotangents(args), direction(args)
    got = operator_results(args, go, gl, moving)
    assert all(x.isfinite().all() for x in got.tensors.values())
    if p < 0.5:
        torch.testing.assert_close(got.output, replace(args, dropout_p=0.0)()[0])
    elif kept(args).any():
        assert got.output.abs().max() > 1e3
    else:
        assert (got.output == 0).all() and (got.grad_value == 0).all()
        # logsumexp alone is left.
        expected = backward(replace(args, dropout_p=0.0), None, gl)
        for name, a, b in zip(LEAVES, backward(args, go, gl)[:3], expected, strict=False):
            torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (1, 3), (2, 3)])
def test_seeds_broadcast_over_the_batch(shape: tuple[int, ...], device: torch.device) -> None:
    q, k, v = (torch.randn(2, 3, 2, 40, 8, device=device) for _ in range(3))
    seed = torch.randint(2**62, shape, device=device)
    args = Arguments(q, k, v, dropout_p=0.5, seed=seed)
    wide = replace(args, seed=seed.expand(2, 3).contiguous())
    given = (*cotangents(args), direction(args))
    expected = operator_results(wide, *given)
    for name, x in operator_results(args, *given).tensors.items():
        assert_bitwise_equal(name, x, getattr(expected, name))


def test_samples_with_the_same_seed_drop_the_same(device: torch.device) -> None:
    args = dropping((40, 60), (8, 8), device)
    args.seed = torch.tensor([7, 7], device=device)
    args.query, args.key, args.value = (x[:1].repeat(2, 1, 1, 1) for x in args.tensors)
    output = args()[0]
    assert_bitwise_equal("output", output[0], output[1])
    assert not torch.equal(output[0, 0], output[0, 1])  # heads differ in any case
    args.seed = torch.tensor([7, 8], device=device)
    output = args()[0]
    assert not torch.equal(output[0], output[1])
