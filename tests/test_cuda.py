"""CUDA without a GPU: what was built, what is registered, and what the results look like."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
import torch
from bad_input import POSITIONAL, positional
from cases import ALL_OPTIONS, DTYPES, arguments
from torch import Tensor
from torch._subclasses import FakeTensorMode

import torch_ext

ops = torch.ops.torch_ext
OPERATORS = [name for name in POSITIONAL if name not in ("attention", "attention_weights")]


def test_architectures_are_those_of_the_build() -> None:
    architectures = torch_ext.cuda_architectures()
    assert isinstance(architectures, tuple)
    assert all(re.fullmatch(r"sm_\d+[af]?", name) for name in architectures)
    build = importlib.import_module("torch_ext._built_for")
    assert architectures == tuple(build.CUDA_ARCHITECTURES.split())
    assert bool(architectures) == bool(re.fullmatch(r"\d+\.\d+", build.CUDA_VERSION))


@pytest.mark.parametrize("name", [*OPERATORS, "_dropout_mask"])
def test_cuda_key_is_registered_where_there_are_kernels(name: str) -> None:
    is_registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_ext::{name}", "CUDA")
    assert is_registered == bool(torch_ext.cuda_architectures())


def fake_cuda(x: Any) -> Any:
    """A tensor without memory that lies in its place on a GPU that need not be there."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all_options"])
@pytest.mark.parametrize("layout", ["contiguous", "heads_inside", "transposed", "packed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_results_on_fake_cuda_tensors_look_like_those_of_the_cpu(
    name: str, dtype: str, layout: str, options: dict[str, Any]
) -> None:
    args = arguments((3, 5), (4, 6), layout=layout, dtype=DTYPES[dtype], **options)
    tensors = positional(name, args)
    real = getattr(ops, name)(*tensors.values(), **args.options)
    with FakeTensorMode():
        fakes = map(fake_cuda, tensors.values())
        given = {key: fake_cuda(x) for key, x in args.options.items()}
        fake = getattr(ops, name)(*fakes, **given)
    for a, b in zip(real, fake, strict=True):
        if a is None or not isinstance(a, Tensor):
            assert b is None
            continue
        assert b.device.type == "cuda"
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_dropout_mask_of_a_fake_cuda_seed() -> None:
    with FakeTensorMode():
        kept = ops._dropout_mask(torch.zeros(2, 3, dtype=torch.int64, device="cuda"), 4, 5, 6, 0.5)
    assert kept.device.type == "cuda" and kept.shape == (2, 3, 4, 5, 6) and kept.dtype == torch.bool
