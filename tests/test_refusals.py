"""What is not there yet says so: double backward, forward mode, vmap, kernels for CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import arguments
from torch import Tensor

ops = torch.ops.torch_ext


@pytest.mark.parametrize("operator", ["attention", "attention_forward"])
def test_double_backward_is_refused(operator: str, device: torch.device) -> None:
    args = arguments(device=device).requires_grad()
    result = args(getattr(ops, operator))
    output = result if isinstance(result, Tensor) else result[0]
    with pytest.raises(RuntimeError, match=r"(?i)torch_ext::.*(double backward|second)"):
        grads = torch.autograd.grad(output.sin().sum(), args.leaves, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in grads), args.leaves)


def test_the_backward_operator_is_not_differentiable(device: torch.device) -> None:
    args = arguments(device=device)
    results = args()
    go = torch.randn_like(results[0]).requires_grad_()
    with pytest.raises(RuntimeError, match=r"(?i)torch_ext::.*(double backward|second)"):
        grads = ops.attention_backward(go, None, *args.tensors, *results)
        torch.autograd.grad(grads[0].sum(), go)


@pytest.mark.parametrize("operand", ["query", "key", "value", "bias"])
@pytest.mark.parametrize("operator", ["attention", "attention_forward"])
def test_forward_mode_is_refused(operand: str, operator: str, device: torch.device) -> None:
    import torch.autograd.forward_ad as forward_ad

    args = arguments(masking="bias_full", device=device)
    with forward_ad.dual_level():
        x = getattr(args, operand)
        setattr(args, operand, forward_ad.make_dual(x, torch.ones_like(x)))
        with pytest.raises(RuntimeError, match=r"(?i)torch_ext::.*forward[- ]mode"):
            args(getattr(ops, operator))


@pytest.mark.parametrize("operator", ["attention", "attention_forward"])
def test_jvp_is_refused(operator: str, device: torch.device) -> None:
    args = arguments(device=device)

    def f(q: Tensor) -> Tensor:
        result = getattr(ops, operator)(q, args.key, args.value)
        return result if isinstance(result, Tensor) else result[0]

    with pytest.raises(RuntimeError, match=r"(?i)torch_ext::.*forward[- ]mode"):
        torch.func.jvp(f, (args.query,), (torch.ones_like(args.query),))


@pytest.mark.parametrize("operator", ["attention", "attention_forward"])
def test_vmap_is_refused(operator: str, device: torch.device) -> None:
    args = arguments(device=device)
    with pytest.raises(RuntimeError, match=r"(?i)torch_ext::.*vmap"):
        torch.func.vmap(getattr(ops, operator))(*args.tensors)


def test_vmap_of_the_backward_is_refused(device: torch.device) -> None:
    args = arguments(device=device).requires_grad()
    output = args(ops.attention)
    with pytest.raises(RuntimeError, match=r"(?i)torch_ext::.*vmap"):
        torch.func.vmap(lambda g: torch.autograd.grad(output, args.query, g))(
            torch.ones(2, *output.shape, device=device)
        )


class ClaimsCuda(Tensor):
    """Without memory; dispatched like a CUDA tensor, so no such device is needed."""

    @staticmethod
    def __new__(cls, *shape: int) -> ClaimsCuda:
        return Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device="cuda")

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} did not reach the dispatcher")


@pytest.mark.parametrize("operator", ["attention", "attention_forward"])
def test_cuda_tensors_are_refused(operator: str) -> None:
    x = ClaimsCuda(2, 3, 4)
    with (
        pytest.raises(NotImplementedError, match=r"torch_ext::.*no CUDA kernels.*query on cuda"),
        torch._C._DisableTorchDispatch(),
    ):
        getattr(ops, operator)(x, x, x)
