"""What this build has no kernels for says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bad_input import POSITIONAL, call, ops
from calls import LEAVES
from torch import Tensor

import torch_ext

# Device: what its error says.
REFUSED = {"xpu": "has no kernels for device xpu"}
if not torch_ext.cuda_architectures():
    REFUSED["cuda"] = "this build of torch_ext has no CUDA kernels.*without nvcc.*on cuda"


class Claims(Tensor):
    """Without memory; dispatched like a tensor of the device, so no such device is needed."""

    @staticmethod
    def __new__(cls, device: str, shape: tuple[int, ...], dtype: torch.dtype) -> Claims:
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} did not reach the dispatcher")


def call_with_claims(operator: str, device: str) -> None:
    """Calls an operator with tensors that claim to be on the device."""
    x, row = (Claims(device, shape, torch.float32) for shape in [(2, 3, 4), (2, 3)])
    absent = [f"{name}_tangent" for name in LEAVES[3:]]
    tensors = {
        name: None if name in absent else row if "logsumexp" in name else x
        for name in POSITIONAL[operator]
    }
    with torch._C._DisableTorchDispatch():
        call(operator, tensors, {})


@pytest.mark.parametrize("device", REFUSED)
@pytest.mark.parametrize("operator", [x for x in POSITIONAL if x != "attention_weights"])
def test_tensors_of_other_devices_are_refused(operator: str, device: str) -> None:
    with pytest.raises(NotImplementedError, match=f"torch_ext::.*{REFUSED[device]}"):
        call_with_claims(operator, device)


@pytest.mark.parametrize("device", REFUSED)
def test_the_dropout_mask_of_other_devices_is_refused(device: str) -> None:
    seed = Claims(device, (2,), torch.int64)
    with (
        pytest.raises(NotImplementedError, match=f"_dropout_mask.*{REFUSED[device]}"),
        torch._C._DisableTorchDispatch(),
    ):
        ops._dropout_mask(seed, 1, 1, 1, 0.5)


@pytest.mark.skipif(not torch_ext.cuda_architectures(), reason="built without CUDA")
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
@pytest.mark.parametrize("operator", [x for x in POSITIONAL if x != "attention_weights"])
def test_cuda_kernels_ask_torch_for_the_device(operator: str) -> None:
    with pytest.raises(RuntimeError, match="not linked with support for cuda"):
        call_with_claims(operator, "cuda")
