"""The operators in the Torch registry: opcheck, Meta, autograd, TorchScript, autocast."""

from __future__ import annotations

import io

import pytest
import torch
from cases import DTYPES, Arguments, arguments
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint
from tracing import MASKINGS, Model, quiet

ops = torch.ops.torch_ext
OPERATORS = ["attention", "attention_forward", "attention_backward", "attention_weights"]


@pytest.mark.parametrize(
    "name, schema",
    [
        (
            "attention",
            "(Tensor query, Tensor key, Tensor value, *, Tensor? mask=None, Tensor? bias=None,"
            " bool is_causal=False, float? scale=None) -> Tensor",
        ),
        (
            "attention_forward",
            "(Tensor query, Tensor key, Tensor value, *, Tensor? mask=None, Tensor? bias=None,"
            " bool is_causal=False, float? scale=None)"
            " -> (Tensor output, Tensor logsumexp, Tensor logsumexp_residual)",
        ),
        (
            "attention_backward",
            "(Tensor? grad_output, Tensor? grad_logsumexp, Tensor query, Tensor key, Tensor value,"
            " Tensor output, Tensor logsumexp, Tensor logsumexp_residual, *, Tensor? mask=None,"
            " Tensor? bias=None,"
            " bool is_causal=False, float? scale=None,"
            " bool[4] output_mask=[True, True, True, True])"
            " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)",
        ),
        (
            "attention_weights",
            "(Tensor query, Tensor key, *, Tensor? mask=None, Tensor? bias=None,"
            " bool is_causal=False, float? scale=None, Tensor? rows=None) -> Tensor",
        ),
    ],
    ids=OPERATORS,
)
def test_schema(name: str, schema: str) -> None:
    assert str(getattr(ops, name).default._schema) == f"torch_ext::{name}{schema}"


# opcheck: schema honesty, autograd registration, fake tensors, all traced with dynamic shapes.


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("name", ["attention", "attention_forward"])
def test_opcheck(name: str, masking: str, grad: bool, device: torch.device) -> None:
    args = arguments((3, 5), (4, 6), "grouped", masking=masking, device=device)
    args = args.requires_grad() if grad else args
    quiet(lambda: opcheck(getattr(ops, name).default, args.tensors, args.options))


@pytest.mark.parametrize(
    "leading, layout",
    [
        ("one_head", "contiguous"),
        ("unbatched", "transposed"),
        ("batched", "heads_inside"),
        ("five_dims", "packed"),
        ("batched", "expanded"),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_opcheck_of_shapes_and_layouts(
    leading: str, layout: str, dtype: str, device: torch.device
) -> None:
    args = arguments(
        (3, 5), (4, 6), leading, layout, "bias_per_head", DTYPES[dtype], 0.3, device=device
    )
    for grad in (args, args.requires_grad()):
        quiet(lambda grad=grad: opcheck(ops.attention_forward.default, grad.tensors, grad.options))


@pytest.mark.parametrize(
    "wanted", [(True, True, True, True), (True, True, True, False), (False, True, False, True)]
)
@pytest.mark.parametrize("cotangents", ["both", "output", "logsumexp"])
def test_opcheck_of_backward(
    wanted: tuple[bool, ...], cotangents: str, device: torch.device
) -> None:
    args = arguments((3, 5), (4, 6), "grouped", masking="bias_mask_causal", device=device)
    results = args()
    go = torch.randn_like(results[0]) if cotangents != "logsumexp" else None
    gl = torch.randn_like(results[1]) if cotangents != "output" else None
    call = (go, gl, *args.tensors, *results)
    quiet(
        lambda: opcheck(
            ops.attention_backward.default, call, args.options | {"output_mask": list(wanted)}
        )
    )


@pytest.mark.parametrize("rows", [None, [0, 2, 2]])
@pytest.mark.parametrize("masking", MASKINGS)
def test_opcheck_of_weights(masking: str, rows: list[int] | None, device: torch.device) -> None:
    args = arguments((3, 5), (4, 6), "grouped", masking=masking, device=device)
    chosen = None if rows is None else torch.tensor(rows, device=device)
    for grad in (args, args.requires_grad()):
        quiet(
            lambda grad=grad: opcheck(
                ops.attention_weights.default,
                (grad.query, grad.key),
                grad.options | {"rows": chosen},
            )
        )


# Meta


@pytest.mark.parametrize(
    "layout", ["contiguous", "heads_inside", "strided", "transposed", "expanded", "packed"]
)
@pytest.mark.parametrize("leading", ["one_head", "unbatched", "grouped", "five_dims"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_meta_describes_what_the_device_returns(
    leading: str, layout: str, dtype: str, device: torch.device
) -> None:
    args = arguments(
        (3, 5),
        (4, 6),
        leading,
        layout,
        "bias_mask_causal",
        DTYPES[dtype],
        wide_bias=True,
        device=device,
    )

    def meta(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

    fake = Arguments(*map(meta, args.tensors), meta(args.mask), meta(args.bias), args.is_causal)
    real, shapes = args(), fake()
    real_grads = ops.attention_backward(
        torch.ones_like(real[0]), None, *args.tensors, *real, **args.options
    )
    fake_grads = ops.attention_backward(
        meta(torch.ones_like(real[0])), None, *fake.tensors, *shapes, **fake.options
    )
    for a, b in zip((*real, *real_grads), (*shapes, *fake_grads), strict=True):
        assert b.device.type == "meta"
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_fake_cuda_tensors_have_shapes() -> None:
    with FakeTensorMode():
        q = torch.empty(2, 4, 5, 8, device="cuda", dtype=torch.bfloat16)
        k = torch.empty(2, 2, 7, 8, device="cuda", dtype=torch.bfloat16)
        output, lse, _ = ops.attention_forward(q, k, k)
    assert (
        output.device.type == "cuda"
        and output.shape == (2, 4, 5, 8)
        and output.dtype == torch.bfloat16
    )
    assert lse.device.type == "cuda" and lse.shape == (2, 4, 5) and lse.dtype == torch.float32


# TorchScript


@pytest.mark.parametrize("optional", [False, True], ids=["defaults", "mask_and_scale"])
def test_script_save_load_and_train(optional: bool, device: torch.device) -> None:
    model = Model().to(device)
    scripted = quiet(lambda: torch.jit.script(model))
    buffer = io.BytesIO()
    quiet(lambda: torch.jit.save(scripted, buffer))
    buffer.seek(0)
    loaded = quiet(lambda: torch.jit.load(buffer))
    x = torch.randn(2, 2, 5, 8, device=device)
    extra = (torch.rand(5, device=device) < 0.7, 0.3) if optional else ()
    expected = model(x, *extra)
    grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    for _ in range(4):  # the profiling executor changes the code that runs after the first calls
        got = loaded(x, *extra)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            torch.autograd.grad(got.square().sum(), list(loaded.parameters())), grads
        )
    frozen = quiet(lambda: torch.jit.freeze(loaded.eval()))
    torch.testing.assert_close(frozen(x, *extra), expected)


def test_trace(device: torch.device) -> None:
    x = torch.randn(2, 5, 8, device=device)
    traced = quiet(lambda: torch.jit.trace(lambda x: ops.attention(x, x, x, is_causal=True), (x,)))
    y = torch.randn(3, 9, 8, device=device)
    torch.testing.assert_close(traced(y), ops.attention(y, y, y, is_causal=True))


# Checkpointing and autocast


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant: bool, device: torch.device) -> None:
    args = arguments(masking="bias_causal", device=device).requires_grad()

    def f(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return ops.attention(q * 2, k, v, bias=bias, is_causal=True)

    expected = torch.autograd.grad(f(*args.leaves).sin().sum(), args.leaves)
    checkpoint(f, *args.leaves, use_reentrant=reentrant).sin().sum().backward()
    for x, grad in zip(args.leaves, expected, strict=True):
        assert torch.equal(x.grad, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias_dtype", [torch.float32, None])
def test_autocast(dtype: torch.dtype, bias_dtype: torch.dtype | None, device: torch.device) -> None:
    args = arguments((9, 11), masking="bias_per_head", device=device)
    args.value = args.value.to(dtype)  # mixed dtypes are what autocast is for
    args.bias = args.bias.to(bias_dtype or dtype)
    args = args.requires_grad()
    with torch.autocast(device.type, dtype):
        output, lse, residual = args()
        alone = args(ops.attention)
    assert output.dtype == alone.dtype == dtype and lse.dtype == residual.dtype == torch.float32
    cast = Arguments(*(x.to(dtype) for x in args.tensors), bias=args.bias)
    assert torch.equal(
        output, cast()[0]
    )  # a float32 bias stays float32: rounding it would show here
    assert torch.equal(alone, output)
    for x, grad in zip(args.leaves, torch.autograd.grad(output.sum(), args.leaves), strict=True):
        assert grad.dtype == x.dtype


def test_autocast_switched_off_changes_nothing(device: torch.device) -> None:
    args = arguments(device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=False):
        assert args(ops.attention).dtype == torch.float32


def test_autocast_leaves_float64_alone(device: torch.device) -> None:
    args = arguments(dtype=torch.float64, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert args(ops.attention).dtype == torch.float64


def test_grad_mode_and_inference_mode(device: torch.device) -> None:
    args = arguments(device=device).requires_grad()
    assert args(ops.attention).requires_grad
    with torch.no_grad():
        assert not args(ops.attention).requires_grad
    with torch.inference_mode():
        assert torch.equal(args(ops.attention), args(ops.attention).clone())
        assert args(ops.attention).is_inference()


def test_backward_through_changed_inputs_is_refused(device: torch.device) -> None:
    args = arguments(device=device).requires_grad()
    key = args.key * 1
    output = ops.attention(args.query, key, args.value)
    key.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_backward_twice_needs_retain_graph(device: torch.device) -> None:
    args = arguments(device=device).requires_grad()
    output = args(ops.attention)
    first = torch.autograd.grad(output.sum(), args.leaves, retain_graph=True)
    second = torch.autograd.grad(output.sum(), args.leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


def test_the_graph_is_freed(device: torch.device) -> None:
    import gc
    import weakref

    args = arguments(device=device).requires_grad()
    output = args(ops.attention)
    reference = weakref.ref(output)
    del output
    gc.collect()
    assert reference() is None


def test_func_grad_works(device: torch.device) -> None:
    args = arguments(dtype=torch.float64, device=device)

    def loss(q: Tensor) -> Tensor:
        return ops.attention(q, args.key, args.value).sin().sum()

    got = torch.func.grad(loss)(args.query)
    q = args.query.clone().requires_grad_()
    torch.testing.assert_close(got, torch.autograd.grad(loss(q), q)[0])
