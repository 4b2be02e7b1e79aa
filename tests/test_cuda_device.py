"""What only a GPU can show: streams, graphs, memory, several devices, the CPU's random bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from calls import (
    Arguments,
    backward,
    cotangents,
    direction,
    operator_results,
    second_order,
    tangent,
)
from cases import ALL_OPTIONS, DTYPES, arguments
from compare import assert_bitwise_equal
from torch import Tensor

import torch_ext

MIB = 2**20
CUDA = torch.device("cuda")

pytestmark = pytest.mark.skipif(
    not torch_ext.cuda_architectures() or not torch.cuda.is_available(),
    reason="needs a GPU and a build with CUDA",
)

ops = torch.ops.torch_ext


def everything(args: Arguments) -> dict[str, Tensor]:
    """The results of all operators."""
    return operator_results(args, *cotangents(args), direction(args)).tensors


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_bits_are_those_of_the_cpu(shape: tuple[int, ...], p: float) -> None:
    seed = torch.randint(-(2**63), 2**63 - 1, shape)
    expected = ops._dropout_mask(seed, 3, 130, 257, p)
    assert torch.equal(ops._dropout_mask(seed.to(CUDA), 3, 130, 257, p).cpu(), expected)


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all_options"])
def test_work_is_queued_on_the_current_stream(options: dict[str, Any]) -> None:
    """The numbers come late, on a stream that is not the default one."""
    args = arguments((70, 101), (40, 24), **options, device=CUDA)
    given = (*cotangents(args), direction(args))
    expected = operator_results(args, *given).tensors
    value = args.value.clone()
    args.value.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        args.value.copy_(value)
        got = operator_results(args, *given).tensors
    stream.synchronize()
    for name, x in expected.items():
        assert_bitwise_equal(name, got[name], x)


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["plain", "all_options"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_replays_all_operators(dtype: str, options: dict[str, Any]) -> None:
    choices: dict[str, Any] = {"dtype": DTYPES[dtype], **options, "device": CUDA}
    args, other = (arguments((70, 101), (64, 64), **choices) for _ in range(2))
    given, others = ((*cotangents(x), direction(x)) for x in (args, other))
    expected = operator_results(other, *others).tensors
    operator_results(args, *given)  # what is made once is there before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = operator_results(args, *given).tensors
    _overwrite(args, other, given, others)
    graph.replay()
    torch.cuda.synchronize()
    for name, x in expected.items():
        assert_bitwise_equal(name, got[name], x)


def _overwrite(args: Arguments, other: Arguments, given: Any, others: Any) -> None:
    """Puts the numbers of the other call where the graph reads its own."""
    for name, x in vars(args).items():
        if isinstance(x, Tensor):
            x.copy_(getattr(other, name))
    for mine, theirs in zip(given[:2], others[:2], strict=True):
        mine.copy_(theirs)
    for name, x in given[2].items():
        x.copy_(others[2][name])


def extra_bytes(call: Callable[[], Sequence[Tensor | None]]) -> int:
    """What a call takes at its worst moment, beyond its results."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = [x for x in call() if x is not None]
    peak = torch.cuda.max_memory_allocated() - before
    return peak - sum(x.nbytes for x in results)


def measured(length: int, dtype: str, options: dict[str, Any]) -> dict[str, int]:
    """Of each operator; the derivatives' calls make the forward's results as well."""
    args = arguments((length, length), (64, 64), "one_head", dtype=DTYPES[dtype], device=CUDA)
    args.is_causal = True
    if options:
        bias, mask = torch.randn(length, device=CUDA), torch.rand(length, device=CUDA) < 0.9
        args.bias, args.mask = bias.to(args.query.dtype), mask
        args.dropout_p, args.softcap = 0.1, 30.0
        args.seed = torch.tensor(3, device=CUDA)
    given, moving = cotangents(args), direction(args)
    results = sum(x.nbytes for x in args())
    calls: dict[str, Callable[[], Sequence[Tensor | None]]] = {
        "forward": args,
        "backward": lambda: backward(args, *given),
        "tangent": lambda: tangent(args, moving),
        "second_order": lambda: second_order(args, *given, moving),
    }
    for call in calls.values():
        call()
    return {name: extra_bytes(call) - results * (name != "forward") for name, call in calls.items()}


@pytest.mark.parametrize("options", [{}, {"many": True}], ids=["plain", "many"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_grows_with_the_length_alone(dtype: str, options: dict[str, Any]) -> None:
    """One matrix of scores at the larger length would take 128 MiB in 16 bits."""
    short, long = (measured(n, dtype, options) for n in (2048, 8192))
    for name in short:
        assert long[name] < 4 * max(short[name], 0) + 16 * MIB, (name, short, long)
        assert long[name] < 96 * MIB, (name, long)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_device_that_is_not_the_current_one() -> None:
    args = arguments((70, 101), (40, 24), **ALL_OPTIONS, device="cuda:0")
    given = (*cotangents(args), direction(args))
    expected = operator_results(args, *given).tensors
    other = Arguments(
        **{name: x.to("cuda:1") if isinstance(x, Tensor) else x for name, x in vars(args).items()}
    )
    moved = (*(x.to("cuda:1") for x in given[:2]), {n: x.to("cuda:1") for n, x in given[2].items()})
    with torch.cuda.device(0):
        got = operator_results(other, *moved).tensors
        assert torch.cuda.current_device() == 0
    for name, x in expected.items():
        assert got[name].device == torch.device("cuda:1")
        assert_bitwise_equal(name, got[name].cpu(), x.cpu())


def test_tensors_on_two_devices_are_refused() -> None:
    x = torch.randn(2, 5, 8)
    with pytest.raises(RuntimeError, match="torch_ext.*device"):
        ops.attention(x.to(CUDA), x, x)
    with pytest.raises(RuntimeError, match="torch_ext.*device"):
        ops.attention(x.to(CUDA), x.to(CUDA), x.to(CUDA), mask=torch.ones(5, 5).bool())


def test_nothing_that_torch_calls_nondeterministic_runs() -> None:
    args = arguments((70, 101), (40, 24), **ALL_OPTIONS, device=CUDA)
    torch.use_deterministic_algorithms(True)
    try:
        assert everything(args)
    finally:
        torch.use_deterministic_algorithms(False)
