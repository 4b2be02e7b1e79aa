"""The operators in the Torch registry: schemas, opcheck, Meta, TorchScript, autocast."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from calls import LEAVES, Arguments, cotangents, direction
from cases import DTYPES, arguments
from differentiation import EVERYTHING, SmallCase
from torch import Tensor
from torch.library import opcheck
from tracing import Model, quiet

ops = torch.ops.torch_ext

SCORE_OPTIONS = (
    "Tensor? mask=None, Tensor? bias=None, bool is_causal=False, SymInt? window_left=None,"
    " SymInt? window_right=None, bool bottom_right=False, float? scale=None,"
    " float? softcap=None, Tensor? slopes=None, Tensor? sink=None"
)
OPTIONS = SCORE_OPTIONS + ", float dropout_p=0., Tensor? seed=None"
GRADS = "Tensor? grad_output, Tensor? grad_logsumexp, "
TANGENTS = "".join(f"Tensor? {name}_tangent, " for name in LEAVES)
SAVED = (
    "Tensor query, Tensor key, Tensor value,"
    " Tensor output, Tensor logsumexp, Tensor logsumexp_residual, *, "
)
GRADIENTS = ", ".join(f"Tensor grad_{name}" for name in LEAVES)
RESULT_TANGENTS = "Tensor output_tangent, Tensor logsumexp_tangent"

SCHEMAS = {
    "attention": f"(Tensor query, Tensor key, Tensor value, {OPTIONS}) -> Tensor",
    "_attention": "(Tensor query, Tensor key, Tensor value, bool is_causal, float? scale, "
    "Tensor? mask=None, Tensor? bias=None) -> Tensor",
    "attention_forward": f"(Tensor query, Tensor key, Tensor value, *, {OPTIONS})"
    " -> (Tensor output, Tensor logsumexp, Tensor logsumexp_residual)",
    "attention_backward": f"({GRADS}{SAVED}{OPTIONS}, bool[6] output_mask="
    f"[{', '.join(['True'] * 6)}]) -> ({GRADIENTS})",
    "attention_tangent": f"({TANGENTS}{SAVED}{OPTIONS}) -> ({RESULT_TANGENTS})",
    "attention_second_order": f"({GRADS}{TANGENTS}{SAVED}{OPTIONS}, bool[8] output_mask="
    f"[{', '.join(['True'] * 8)}]) -> ({GRADIENTS}, {RESULT_TANGENTS})",
    "attention_weights": f"(Tensor query, Tensor key, *, {SCORE_OPTIONS}, Tensor? rows=None)"
    " -> Tensor",
    "_dropout_mask": "(Tensor seed, SymInt heads, SymInt queries, SymInt keys, float dropout_p)"
    " -> Tensor",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    assert str(getattr(ops, name).default._schema) == f"torch_ext::{name}{SCHEMAS[name]}"


# opcheck: schema honesty, autograd registration, fake tensors, all traced with dynamic shapes.


OPCHECK_CASES = {
    "plain": SmallCase(),
    "mask_full": SmallCase(masking="mask_full"),
    "bias_causal": SmallCase(masking="bias_per_head", window="right_bottom_right"),
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("case", OPCHECK_CASES.values(), ids=OPCHECK_CASES)
@pytest.mark.parametrize("name", ["attention", "attention_forward"])
def test_opcheck(name: str, case: SmallCase, grad: bool, device: torch.device) -> None:
    args = case.arguments(device, torch.float32)
    args = args.requires_grad() if grad else args
    quiet(lambda: opcheck(getattr(ops, name).default, args.tensors, args.options))


def test_opcheck_of_a_seed_that_is_drawn(device: torch.device) -> None:
    args = arguments(dropout_p=0.4, device=device).requires_grad()
    args.seed = None
    quiet(lambda: opcheck(ops.attention.default, args.tensors, args.options))


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


def derivative_calls(args: Arguments, grad: bool) -> dict[str, tuple[Tensor | None, ...]]:
    """The positional arguments of the operators that are derivatives."""
    results = [x.detach() for x in args()]
    given = {f"grad_{i}": x for i, x in enumerate(cotangents(args))} | direction(args)
    if grad:
        args = args.requires_grad()
        given = {name: x.requires_grad_() for name, x in given.items()}
    gradients = (given["grad_0"], given["grad_1"])
    tangents = tuple(given.get(name) for name in LEAVES)
    return {
        "attention_backward": (*gradients, *args.tensors, *results),
        "attention_tangent": (*tangents, *args.tensors, *results),
        "attention_second_order": (*gradients, *tangents, *args.tensors, *results),
    }


@pytest.mark.parametrize(
    "case, grad",
    [(SmallCase(), False), (EVERYTHING, False), (EVERYTHING, True)],
    ids=["plain", "everything", "everything_grad"],
)
@pytest.mark.parametrize(
    "name", ["attention_backward", "attention_tangent", "attention_second_order"]
)
def test_opcheck_of_derivatives(
    name: str, case: SmallCase, grad: bool, device: torch.device
) -> None:
    args = case.arguments(device, torch.float32)
    call = derivative_calls(args, grad)[name]
    quiet(lambda: opcheck(getattr(ops, name).default, call, args.options))


@pytest.mark.parametrize("missing, wanted", [((0,), (0, 1, 2)), ((1,), (0, 5)), ((0, 1), (3, 4))])
@pytest.mark.parametrize("name", ["attention_backward", "attention_second_order"])
def test_opcheck_of_parts(
    name: str, missing: tuple[int, ...], wanted: tuple[int, ...], device: torch.device
) -> None:
    args = EVERYTHING.arguments(device, torch.float32)
    call = derivative_calls(args, grad=False)[name]
    call = tuple(None if i in missing else x for i, x in enumerate(call))
    size = 6 if name == "attention_backward" else 8
    mask = {"output_mask": [i in wanted for i in range(size)]}
    quiet(lambda: opcheck(getattr(ops, name).default, call, args.options | mask))


@pytest.mark.parametrize(
    "case, rows",
    [(SmallCase(), None), (SmallCase(masking="bias_full"), [0, 2, 2]), (EVERYTHING, [3])],
    ids=["plain", "bias", "everything"],
)
def test_opcheck_of_weights(case: SmallCase, rows: list[int] | None, device: torch.device) -> None:
    args = case.arguments(device, torch.float32).requires_grad()
    chosen = None if rows is None else torch.tensor(rows, device=device)
    options = {k: x for k, x in args.options.items() if k not in ("dropout_p", "seed")}
    call = (args.query, args.key)
    quiet(lambda: opcheck(ops.attention_weights.default, call, options | {"rows": chosen}))


def test_opcheck_of_the_dropout_mask(device: torch.device) -> None:
    seed = torch.randint(2**62, (3, 2), device=device)
    quiet(lambda: opcheck(ops._dropout_mask.default, (seed, 2, 4, 5, 0.3)))


# Meta


def meta(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


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
        slopes="head",
        sink="full",
        dropout_p=0.3,
        is_wide=True,
        device=device,
    )
    calls = {"attention_forward": args.tensors} | derivative_calls(args, grad=False)
    for name, call in calls.items():
        real = getattr(ops, name)(*call, **args.options)
        options = {key: meta(value) for key, value in args.options.items()}
        fake = getattr(ops, name)(*map(meta, call), **options)
        for a, b in zip(real, fake, strict=True):
            assert b.device.type == "meta"
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


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


def _penalty(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> list[Tensor]:
    output = torch.ops.torch_ext.attention(
        q, k, v, is_causal=True, window_left=2, softcap=2.0, slopes=slopes, dropout_p=0.3
    )
    first = torch.autograd.grad([output.sin().sum()], [q, k, v, slopes], create_graph=True)
    total = torch.zeros([], dtype=q.dtype, device=q.device)
    for grad in first:
        if grad is not None:  # which the compiler cannot know
            total = total + grad.square().sum()
    second = torch.autograd.grad([total], [q, k, v, slopes])
    found: list[Tensor] = []
    for grad in second:
        if grad is not None:
            found.append(grad)
    return found


def test_script_with_options_and_second_derivatives(device: torch.device) -> None:
    scripted = quiet(lambda: torch.jit.script(_penalty))
    shapes = [(2, 2, 5, 4), (2, 2, 6, 4), (2, 2, 6, 3), (2,)]
    leaves = [torch.randn(s, device=device, requires_grad=True) for s in shapes]
    for _ in range(4):
        torch.manual_seed(1)
        expected = _penalty(*leaves)
        torch.manual_seed(1)
        for a, b in zip(scripted(*leaves), expected, strict=True):
            assert torch.equal(a, b)


def test_trace(device: torch.device) -> None:
    x = torch.randn(2, 5, 8, device=device)
    traced = quiet(lambda: torch.jit.trace(lambda x: ops.attention(x, x, x, is_causal=True), (x,)))
    y = torch.randn(3, 9, 8, device=device)
    torch.testing.assert_close(traced(y), ops.attention(y, y, y, is_causal=True))


# Autocast


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
