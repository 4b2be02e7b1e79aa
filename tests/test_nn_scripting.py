"""Modules in TorchScript, torch.compile and autocast; no copies of heads."""

import io

import pytest
import torch
from multihead import F64, NEAR, OPTIONS, assert_same_with_gradients
from torch import Tensor, nn
from torch.testing import assert_close

from torch_ext.nn import MultiheadAttention, RotaryEmbedding, SinusoidalPositionalEncoding

on_device = pytest.mark.usefixtures("on_device")


@on_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_module_runs_under_autocast(dtype: torch.dtype, device: torch.device) -> None:
    module = MultiheadAttention(12, 3, rotary=RotaryEmbedding(4))
    x = torch.randn(2, 5, 12, requires_grad=True)
    with torch.autocast(device.type, dtype):
        output = module(x, bias=torch.randn(5, 5), is_causal=True)
    assert output.dtype == dtype
    output.float().sum().backward()
    assert x.grad.dtype == torch.float32
    assert x.grad.isfinite().all()


def modules() -> list[tuple[nn.Module, tuple[Tensor, ...]]]:
    x = torch.randn(2, 5, 12, dtype=F64)
    return [
        (MultiheadAttention(12, 3, dtype=F64), (x,)),
        (MultiheadAttention(12, 3, num_kv_heads=1, bias=False, dtype=F64), (x, x[:, :3])),
        (MultiheadAttention(12, 3, rotary=RotaryEmbedding(4), alibi="fixed", dtype=F64), (x,)),
        (MultiheadAttention(12, 3, dtype=F64, **OPTIONS["everything"]), (x, x[:, :3])),
        (SinusoidalPositionalEncoding(12), (x,)),
        (RotaryEmbedding(12), (x,)),
        (RotaryEmbedding(12, interleaved=False), (x, torch.tensor([3, 1, 4, 1, 5]))),
    ]


class Block(nn.Module):
    """The options of forward, as a model would pass them."""

    def __init__(self) -> None:
        super().__init__()
        self.order = SinusoidalPositionalEncoding(12)
        self.mix = MultiheadAttention(
            12, 3, rotary=RotaryEmbedding(4), alibi="learned", sink=True, dtype=F64
        )

    def forward(self, x: Tensor, key_mask: Tensor, bias: Tensor) -> Tensor:
        x = self.order(x, offset=2)
        mixed: Tensor = self.mix(x, key_mask=key_mask, bias=bias, is_causal=True)
        return mixed


def block_inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 5, 12, dtype=F64, requires_grad=True)
    return x, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]), torch.randn(5, 5, dtype=F64)


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_script_save_and_load() -> None:
    for module, inputs in [*modules(), (Block(), block_inputs())]:
        archive = io.BytesIO()
        torch.jit.save(torch.jit.script(module), archive)
        archive.seek(0)
        loaded = torch.jit.load(archive)
        for _ in range(3):  # profiling, optimised, and as optimised
            assert_close(loaded(*inputs), module(*inputs), **NEAR)


@on_device
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_module_trains() -> None:
    block, inputs = Block(), block_inputs()
    scripted = torch.jit.script(block)
    for _ in range(3):
        expected = torch.autograd.grad(block(*inputs).square().sum(), list(block.parameters()))
        grads = torch.autograd.grad(scripted(*inputs).square().sum(), list(scripted.parameters()))
        assert_close(grads, expected, **NEAR)


@pytest.mark.parametrize("dynamic", [False, True])
def test_block_compiles_in_one_graph(
    fresh_dynamo: None, dynamic: bool, device: torch.device
) -> None:
    with device:  # only here: the compiler traces such a context into the block
        block, inputs = Block(), block_inputs()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_same_with_gradients(compiled(*inputs), block(*inputs), [inputs[0]])


def test_modules_compile_in_one_graph(fresh_dynamo: None, device: torch.device) -> None:
    with device:
        pairs = modules()
    for module, inputs in pairs:
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_close(compiled(*inputs), module(*inputs), **NEAR)


@on_device
def test_heads_are_split_and_joined_without_copies() -> None:
    # The only new memory of size N x embed_dim: four projections and the operator's output.
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.name())
            return function(*args, **(kwargs or {}))

    module = MultiheadAttention(12, 3, dtype=F64)
    x = torch.randn(2, 5, 12, dtype=F64)
    with Recorder() as recorder, torch.no_grad():
        module(x)
    copies = {"aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous"}
    assert "torch_ext::attention_forward" in recorder.names
    assert not copies & set(recorder.names)
