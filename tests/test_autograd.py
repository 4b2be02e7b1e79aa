"""How the operators behave in the graph: what they keep, what counts as constant, modes, edges."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from calls import Arguments, cotangents, direction, saved
from cases import DTYPES, arguments
from differentiation import EVERYTHING, SmallCase, functions, scalar
from torch import Tensor
from torch.func import jvp
from torch.utils.checkpoint import checkpoint

ops = torch.ops.torch_ext


def everything(device: torch.device, dtype: torch.dtype = torch.float64) -> Arguments:
    return EVERYTHING.arguments(device, dtype).requires_grad()


def first(args: Arguments, **more: Any) -> tuple[Tensor, ...]:
    """Gradients of a function of output and logsumexp."""
    output, lse, _ = args()
    value = output.sin().sum() + lse.masked_fill(lse == -torch.inf, 0).cos().sum()
    return torch.autograd.grad(value, args.leaves, **more)


def penalty(args: Arguments) -> Tensor:
    return sum(g.square().sum() for g in first(args, create_graph=True))


# Constants


def test_residual_is_not_differentiable(device: torch.device) -> None:
    args = everything(device)
    assert [x.requires_grad for x in args()] == [True, True, False]
    with forward_ad.dual_level():
        args.query = forward_ad.make_dual(args.query, torch.ones_like(args.query))
        tangents = [forward_ad.unpack_dual(x).tangent for x in args()]
    assert [t is not None for t in tangents] == [True, True, False]


def test_saved_results_count_as_constants(device: torch.device) -> None:
    """Derivatives of derivatives are total: they come back through the inputs alone."""
    args = everything(device)
    go, gl = cotangents(args)
    tangents = list(direction(args).values())
    with_history, without = args(), [x.detach() for x in args()]
    calls = [(ops.attention_backward, (go, gl)), (ops.attention_tangent, tangents)]
    calls.append((ops.attention_second_order, (go, gl, *tangents)))
    for op, given in calls:
        gradients = []
        for results in (with_history, without):
            values = op(*given, *args.tensors, *results, **args.options)
            value = sum(x.sin().sum() for x in values)
            gradients.append(torch.autograd.grad(value, args.leaves))
        for a, b in zip(*gradients, strict=True):
            assert torch.equal(a, b)
        lse = with_history[1].detach().requires_grad_()
        values = op(*given, *args.tensors, without[0], lse, without[2], **args.options)
        value = sum(x.sum() for x in values)
        assert torch.autograd.grad(value, lse, allow_unused=True) == (None,)


def test_tangents_of_saved_results_count_for_nothing(device: torch.device) -> None:
    args = SmallCase().arguments(device)
    go, gl = cotangents(args)
    output, lse, residual = args()
    expected = ops.attention_backward(go, gl, *args.tensors, output, lse, residual)
    with forward_ad.dual_level():
        results = [forward_ad.make_dual(x, torch.ones_like(x)) for x in (output, lse)]
        gradients = ops.attention_backward(go, gl, *args.tensors, *results, residual)
        assert all(forward_ad.unpack_dual(x).tangent is None for x in gradients[:3])
    assert all(torch.equal(a, b) for a, b in zip(gradients[:3], expected, strict=False))


# What the graph keeps


@pytest.mark.parametrize(
    "name", ["query", "key", "value", "bias", "slopes", "sink", "mask", "seed"]
)
@pytest.mark.parametrize("order", [1, 2])
def test_changed_inputs_are_noticed(name: str, order: int, device: torch.device) -> None:
    args = everything(device)
    changed = getattr(args, name).clone()
    args = replace(args, **{name: changed})
    leaves = [x for x in args.leaves if x.is_leaf]
    value = args()[0].sin().sum()
    if order == 2:
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        value = sum(g.square().sum() for g in gradients)
    with torch.no_grad():
        changed.copy_(changed.clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, leaves)


def test_changed_outputs_are_noticed(device: torch.device) -> None:
    args = everything(device)
    output, _, _ = args()
    value = output.sum()
    with torch.no_grad():
        output.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_backward_twice_needs_retain_graph(order: int, device: torch.device) -> None:
    args = everything(device)
    value = args()[0].sin().sum()
    for _ in range(order - 1):
        gradients = torch.autograd.grad(value, args.leaves, create_graph=True)
        value = sum(g.sin().sum() for g in gradients)
    kept = torch.autograd.grad(value, args.leaves, retain_graph=True)
    again = torch.autograd.grad(value, args.leaves)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, args.leaves)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_graph_is_freed(order: int, device: torch.device) -> None:
    args = everything(device)
    output, lse, _ = args()
    references = [weakref.ref(output), weakref.ref(lse)]
    value = output.sin().sum() + lse.nan_to_num().sum()
    for _ in range(order - 1):
        gradients = torch.autograd.grad(value, args.leaves, create_graph=True)
        references += [weakref.ref(x) for x in gradients]
        value = sum(g.sin().sum() for g in gradients)
        del gradients
    del output, lse, value
    gc.collect()
    assert all(reference() is None for reference in references)


def test_the_graph_of_tangents_is_freed(device: torch.device) -> None:
    args = everything(device)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(args.query, torch.ones_like(args.query))
        output = replace(args, query=dual)()[0]
        references = [weakref.ref(output), weakref.ref(forward_ad.unpack_dual(output).tangent)]
        del output
        gc.collect()
        assert all(reference() is None for reference in references)


def test_saved_tensor_hooks(device: torch.device) -> None:
    args = everything(device)
    expected = torch.autograd.grad(penalty(args), args.leaves)
    packed: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        packed.append(x)
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = penalty(args)
    for a, b in zip(torch.autograd.grad(value, args.leaves), expected, strict=True):
        assert torch.equal(a, b)
    assert any(x.data_ptr() == args.query.data_ptr() for x in packed)


# Modes


def test_grad_mode_and_inference_mode(device: torch.device) -> None:
    args = everything(device)
    assert args(ops.attention).requires_grad
    with torch.no_grad():
        assert not args(ops.attention).requires_grad
    with torch.inference_mode():
        assert torch.equal(args(ops.attention), args(ops.attention).clone())
        assert args(ops.attention).is_inference()


def test_create_graph_alone_costs_nothing_dense(device: torch.device) -> None:
    """Gradients that nobody differentiates belong to a graph all the same."""
    args = everything(device)
    assert all(g.requires_grad for g in first(args, create_graph=True))
    assert not any(g.requires_grad for g in first(args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_higher_derivatives_ignore_autocast(dtype: torch.dtype, device: torch.device) -> None:
    """Autocast acts on the forward alone, as for PyTorch's own operators."""
    args = everything(device, torch.float32)
    gradients = [torch.autograd.grad(penalty(args), args.leaves, create_graph=True)]
    with torch.autocast(device.type, dtype):
        assert args(ops.attention).dtype == dtype
    values = sum(g.square().sum() for g in gradients[0])
    expected = torch.autograd.grad(values, args.leaves, retain_graph=True)
    with torch.autocast(device.type, dtype):
        got = torch.autograd.grad(values, args.leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_double_backward_of_an_autocast_forward(dtype: torch.dtype, device: torch.device) -> None:
    args = everything(device, torch.float32)
    with torch.autocast(device.type, dtype):
        output, _, _ = args()
    assert output.dtype == dtype
    gradients = torch.autograd.grad(output.float().sin().sum(), args.leaves, create_graph=True)
    seconds = torch.autograd.grad(sum(g.square().sum() for g in gradients), args.leaves)
    for x, g, s in zip(args.leaves, gradients, seconds, strict=True):
        assert x.dtype == g.dtype == s.dtype and s.isfinite().all() and s.abs().max() > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_drops_the_same_weights_again(reentrant: bool, device: torch.device) -> None:
    args = everything(device)
    args.seed = None

    def f(*x: Tensor) -> Tensor:
        given = dict(zip(args.named_leaves, x, strict=True))
        return replace(args, **given | {"query": given["query"] * 2})(ops.attention)

    torch.manual_seed(3)
    expected = torch.autograd.grad(f(*args.leaves).sin().sum(), args.leaves)
    torch.manual_seed(3)
    output = checkpoint(f, *args.leaves, use_reentrant=reentrant)
    torch.manual_seed(4)
    output.sin().sum().backward()
    for x, grad in zip(args.leaves, expected, strict=True):
        assert torch.equal(x.grad, grad)


def test_checkpoint_and_double_backward(device: torch.device) -> None:
    args = everything(device)
    args.seed = None

    def f(q: Tensor) -> Tensor:
        return replace(args, query=q * 2)(ops.attention)

    def second(run: Any) -> Tensor:
        torch.manual_seed(3)
        (g,) = torch.autograd.grad(run(args.query).sin().sum(), args.query, create_graph=True)
        return torch.autograd.grad(g.square().sum(), args.query)[0]

    assert torch.equal(second(lambda q: checkpoint(f, q, use_reentrant=False)), second(f))


def test_manual_seed_decides_what_is_dropped(device: torch.device) -> None:
    args = arguments((40, 40), dropout_p=0.5, device=device)
    args.seed = None

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return args(ops.attention)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert not torch.equal(args(ops.attention), args(ops.attention))


# Edges of shape and of value


def derivatives(args: Arguments) -> list[Tensor]:
    """Everything up to the third derivative, and forward over forward, along one direction."""
    ours, _, leaves = functions(args)
    f, tangents = scalar(ours), tuple(x.sin() for x in leaves)
    leaves = tuple(x.requires_grad_() for x in leaves)
    results, value = [], f(*leaves)
    for _ in range(3):
        gradients = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        results += gradients
        value = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    leaves = tuple(x.detach() for x in leaves)
    results += jvp(ours, leaves, tangents)[1]
    results += jvp(lambda *x: jvp(ours, x, tangents)[1], leaves, tangents)[1]
    return results


@pytest.mark.parametrize("empty", ["batch", "heads", "queries", "keys", "value_head_size"])
@pytest.mark.parametrize("sink", [False, True])
def test_empty_tensors(empty: str, sink: bool, device: torch.device) -> None:
    b, h, n, m, e = (
        0 if empty == name else size
        for name, size in [
            ("batch", 2), ("heads", 2), ("queries", 3), ("keys", 4), ("value_head_size", 2)
        ]
    )  # fmt: skip
    shapes = [(b, h, n, 3), (b, h, m, 3), (b, h, m, e)]
    args = Arguments(
        *(torch.randn(s, dtype=torch.float64, device=device) for s in shapes),
        bias=torch.randn(h, n, m, dtype=torch.float64, device=device),
        is_causal=True,
        softcap=0.9,
        slopes=torch.rand(h, dtype=torch.float64, device=device),
        sink=torch.randn(h, dtype=torch.float64, device=device) if sink else None,
        dropout_p=0.3,
        seed=torch.zeros(b, dtype=torch.int64, device=device),
    )
    got = derivatives(args)
    assert all(x.isfinite().all() for x in got)
    if empty == "keys" and not sink:
        assert all((x == 0).all() for x in got)


@pytest.mark.parametrize("sink", ["absent", "head"])
def test_rows_that_see_nothing_have_no_derivatives(sink: str, device: torch.device) -> None:
    args = SmallCase(masking="bias_full", sink=sink, softcap=0.9, slopes="head").arguments(device)
    args.mask = torch.zeros(4, 5, dtype=torch.bool, device=device)
    args.mask[1, 2] = True
    got = derivatives(args)
    assert all(x.isfinite().all() for x in got)
    queries = [x for x in got if x.shape == args.query.shape]
    assert len(queries) == 3
    for x in queries:
        assert (x[..., [0, 2, 3], :] == 0).all()
    for x in (x for x in got if x.shape == args.key.shape):
        assert (x[..., [0, 1, 3, 4], :] == 0).all()


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
def test_padding_may_hold_anything(garbage: float, device: torch.device) -> None:
    """Up to the third derivative and for forward over forward, which are dense."""
    args = SmallCase(masking="mask_padding", softcap=0.9, dropout_p=0.4).arguments(device)
    args.mask[...] = torch.tensor([True, False, True, True, False], device=device)
    expected = derivatives(args)
    for x in (args.key, args.value):
        x[..., ~args.mask.flatten(), :] = garbage
    for name, got, want in zip(range(99), derivatives(args), expected, strict=False):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("dtype", [x for x in DTYPES if x != "float64"])
def test_higher_derivatives_in_every_dtype(dtype: str, device: torch.device) -> None:
    args = EVERYTHING.arguments(device, DTYPES[dtype])
    wide = replace(args, **{name: x.double() for name, x in args.named_leaves.items()})
    tolerance = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.1}[dtype]
    for a, b in zip(derivatives(args), derivatives(wide), strict=True):
        assert a.dtype in (args.query.dtype, args.wide_dtype)
        assert (a.double() - b).norm() < tolerance * b.norm(), (a, b)


def test_cotangents_of_any_strides(device: torch.device) -> None:
    args = everything(device)
    go, gl = (x[..., :1].expand(x.shape) if x.dim() == 4 else x for x in cotangents(args))
    tangents = [x[..., :1].expand(x.shape) for x in direction(args).values() if x.dim() > 0]
    call = (go, gl, *tangents, *saved(args))
    strided = ops.attention_second_order(*call, **args.options)
    dense = ops.attention_second_order(*(x.contiguous() for x in call), **args.options)
    for a, b in zip(strided, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_func_grad_of_one_input(device: torch.device) -> None:
    args = arguments(dtype=torch.float64, device=device)

    def loss(q: Tensor) -> Tensor:
        return ops.attention(q, args.key, args.value).sin().sum()

    q = args.query.clone().requires_grad_()
    torch.testing.assert_close(
        torch.func.grad(loss)(args.query), torch.autograd.grad(loss(q), q)[0]
    )
