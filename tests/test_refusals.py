"""What this build has no kernels for says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bad_input import POSITIONAL, call, ops
from calls import LEAVES
from torch import Tensor


class ClaimsCuda(Tensor):
    """Without memory; dispatched like a CUDA tensor, so no such device is needed."""

    @staticmethod
    def __new__(cls, *shape: int) -> ClaimsCuda:
        return Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device="cuda")

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} did not reach the dispatcher")


@pytest.mark.parametrize("operator", [x for x in POSITIONAL if x != "attention_weights"])
def test_cuda_tensors_are_refused(operator: str) -> None:
    x, row = ClaimsCuda(2, 3, 4), ClaimsCuda(2, 3)
    absent = [f"{name}_tangent" for name in LEAVES[3:]]
    tensors = {
        name: None if name in absent else row if "logsumexp" in name else x
        for name in POSITIONAL[operator]
    }
    with (
        pytest.raises(NotImplementedError, match=r"torch_ext::.*no CUDA kernels.*on cuda"),
        torch._C._DisableTorchDispatch(),
    ):
        call(operator, tensors, {})


def test_the_dropout_mask_of_cuda_seeds_is_refused() -> None:
    seed = Tensor._make_wrapper_subclass(ClaimsCuda, (2,), dtype=torch.int64, device="cuda")
    with (
        pytest.raises(NotImplementedError, match=r"_dropout_mask.*no CUDA kernels.*on cuda"),
        torch._C._DisableTorchDispatch(),
    ):
        ops._dropout_mask(seed, 1, 1, 1, 0.5)
