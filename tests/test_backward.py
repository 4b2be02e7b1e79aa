"""Gradients: accuracy against the oracle, gradcheck on the fused path, only those asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    LEADING,
    MASKINGS,
    Arguments,
    Case,
    arguments,
    cotangents,
    operator_results,
)
from compare import assert_bitwise_equal, assert_results_accurate
from reference import exact, yardsticks
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

ops = torch.ops.torch_ext


def check_backward(args: Arguments, *, output: bool = True, logsumexp: bool = True) -> None:
    grad_output, grad_lse = cotangents(exact(*args.tensors, **args.options))
    wide = args.query.dtype if args.query.dtype == torch.float64 else torch.float32
    go = arrange_like(grad_output, args) if output else None
    gl = grad_lse.to(args.query.device, wide) if logsumexp else None
    got = operator_results(args, go, gl)
    expected, plain = (
        f(*args.tensors, **args.options, grad_output=go, grad_logsumexp=gl)
        for f in (exact, yardsticks)
    )
    assert_results_accurate(got, expected, plain)


def arrange_like(grad_output: Tensor, args: Arguments) -> Tensor:
    """The cotangent in the dtype of the query, and not contiguous when the query is not."""
    grad = grad_output.to(args.query.device, args.query.dtype)
    return grad if args.query.is_contiguous() else grad.mT.contiguous().mT


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_accurate(case: Case, device: torch.device) -> None:
    check_backward(case.arguments(device))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("size", [1, 3, 40, 64, 80, 96, 111, 128, 256, 300])
def test_every_head_size_in_every_dtype(
    size: int, dtype: torch.dtype, device: torch.device
) -> None:
    check_backward(
        arguments(
            (33, 70), (size, size), "grouped", masking="bias_causal", dtype=dtype, device=device
        )
    )


@pytest.mark.isa
@pytest.mark.parametrize(
    "length", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]
)
def test_lengths_around_vector_and_tile_sizes(length: int, device: torch.device) -> None:
    check_backward(arguments((length, 66), (20, 20), masking="causal", device=device))
    check_backward(arguments((66, length), (20, 20), masking="bias_per_head", device=device))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_sequence(dtype: str, device: torch.device) -> None:
    check_backward(
        arguments(
            (1025, 1025),
            (64, 64),
            "unbatched",
            masking="causal",
            dtype=DTYPES[dtype],
            device=device,
        )
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("parts", ["output", "logsumexp"])
def test_output_or_logsumexp_alone(parts: str, dtype: torch.dtype, device: torch.device) -> None:
    args = arguments(
        (21, 34), (40, 24), "grouped", masking="bias_per_head", dtype=dtype, device=device
    )
    check_backward(args, output=parts == "output", logsumexp=parts == "logsumexp")


def test_gradient_of_logsumexp_does_not_reach_value(device: torch.device) -> None:
    args = arguments(dtype=torch.float64, device=device).requires_grad()
    grad = torch.autograd.grad(args()[1].sum(), args.value, allow_unused=True)[0]
    assert grad is None or (grad == 0).all()


def test_residual_is_not_differentiable(device: torch.device) -> None:
    output, lse, residual = arguments(device=device).requires_grad()()
    assert output.requires_grad and lse.requires_grad and not residual.requires_grad


class Recorder(TorchDispatchMode):
    """Names of the operators that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


FORBIDDEN = ("bmm", "mm", "matmul", "softmax", "exp", "logsumexp", "addmm", "baddbmm", "einsum")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("masking", ["none", "bias_mask_causal"])
def test_the_fused_operators_are_what_runs(
    masking: str, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(masking=masking, dtype=dtype, device=device).requires_grad()
    with Recorder() as recorder:
        output = args(ops.attention)
        torch.autograd.grad(output, args.leaves, torch.ones_like(output))
    assert recorder.names.count("torch_ext::attention_forward") == 1, recorder.names
    assert recorder.names.count("torch_ext::attention_backward") == 1, recorder.names
    used = {name.removeprefix("aten::").strip("_") for name in recorder.names}
    assert not used & set(FORBIDDEN), recorder.names


def numerical(args: Arguments, op: Any, *, fast: bool) -> None:
    """gradcheck of an operator in float64, for everything that can be differentiated."""
    args = args.requires_grad()
    bias = args.bias is not None
    hidden = args.bias == -torch.inf if bias else None

    def f(q: Tensor, k: Tensor, v: Tensor, *b: Tensor) -> Any:
        # Numerical differentiation would try to step from -inf, so those entries are put in here.
        options = args.options | ({"bias": b[0].masked_fill(hidden, -torch.inf)} if b else {})
        result = op(q, k, v, **options)
        return result if isinstance(result, Tensor) else result[:2]

    leaves = [x.detach().clone().requires_grad_() for x in args.leaves]
    if bias:
        leaves[3] = leaves[3].detach().masked_fill(hidden, 0).requires_grad_()
    assert gradcheck(f, leaves, fast_mode=fast)


@pytest.mark.parametrize(
    "masking",
    [name for name in MASKINGS if name not in ("mask_full", "mask_causal", "bias_mask_causal")],
)
def test_gradcheck_of_every_masking(masking: str, device: torch.device) -> None:
    args = arguments((5, 7), (3, 4), "grouped", masking=masking, dtype=torch.float64, device=device)
    numerical(args, ops.attention, fast=True)


@pytest.mark.parametrize("masking", ["mask_full", "mask_causal", "bias_mask_causal"])
def test_gradcheck_with_rows_that_see_nothing(masking: str, device: torch.device) -> None:
    args = arguments((5, 7), (3, 4), "grouped", masking=masking, dtype=torch.float64, device=device)
    numerical(args, ops.attention, fast=True)


@pytest.mark.parametrize("leading", LEADING)
def test_gradcheck_of_every_shape(leading: str, device: torch.device) -> None:
    args = arguments(
        (4, 6), (5, 3), leading, masking="bias_causal", dtype=torch.float64, device=device
    )
    numerical(args, ops.attention, fast=True)


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x != "expanded"])
def test_gradcheck_of_output_and_logsumexp_in_every_layout(
    layout: str, device: torch.device
) -> None:
    args = arguments((4, 6), (5, 3), "batched", layout, "bias_mask", torch.float64, device=device)
    args = Arguments(*args.tensors, bias=args.bias, is_causal=False)
    numerical(args, ops.attention_forward, fast=True)


@pytest.mark.parametrize(
    "masking",
    [
        "none",
        "causal",
        "mask_square",
        "bias_full",
        "bias_padding",
        "bias_rows",
        "bias_one_per_head",
    ],
)
def test_gradcheck_entry_by_entry(masking: str, device: torch.device) -> None:
    args = arguments(
        (3, 4), (3, 2), "grouped", masking=masking, dtype=torch.float64, scale=0.7, device=device
    )
    args.mask = (
        None
        if args.mask is None
        else args.mask.index_fill(-1, torch.tensor([0], device=device), True)
    )
    numerical(args, ops.attention, fast=False)
    if masking not in ("causal", "mask_square"):
        args.bias = (
            None if args.bias is None else args.bias.nan_to_num(neginf=0.5)
        )  # no row without a key
        numerical(args, ops.attention_forward, fast=False)


def test_gradcheck_across_tiles(device: torch.device) -> None:
    args = arguments(
        (70, 140), (8, 8), "unbatched", masking="bias_causal", dtype=torch.float64, device=device
    )
    numerical(args, ops.attention, fast=True)


def test_gradcheck_of_broadcast_samples(device: torch.device) -> None:
    shapes = [(2, 1, 2, 3, 4), (3, 1, 5, 4), (1, 1, 5, 2)]
    leaves = [
        torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes
    ]
    assert gradcheck(lambda q, k, v: ops.attention(q, k, v, is_causal=True), leaves, fast_mode=True)


@pytest.mark.parametrize(
    "wanted", [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 3), (2, 3), (0, 1, 2)]
)
def test_only_the_gradients_asked_for(wanted: tuple[int, ...], device: torch.device) -> None:
    args = arguments((9, 11), masking="bias_full", device=device).requires_grad()
    every = torch.autograd.grad(args()[0].sum(), args.leaves)
    names = ["query", "key", "value", "bias"]
    parts = {
        n: x.detach().requires_grad_(i in wanted)
        for i, (n, x) in enumerate(zip(names, args.leaves, strict=True))
    }
    args = Arguments(**parts, is_causal=args.is_causal)
    chosen = [args.leaves[i] for i in wanted]
    for i, grad in zip(wanted, torch.autograd.grad(args()[0].sum(), chosen), strict=True):
        assert_bitwise_equal(f"gradient of {names[i]}", grad, every[i])


@pytest.mark.parametrize("wanted", range(16))
def test_backward_operator_leaves_out_what_was_not_asked_for(
    wanted: int, device: torch.device
) -> None:
    output_mask = [bool(wanted >> i & 1) for i in range(4)]
    args = arguments((9, 11), masking="bias_full", device=device)
    results = args()
    go = torch.randn_like(results[0])
    call = (go, None, *args.tensors, *results)
    grads = ops.attention_backward(*call, **args.options, output_mask=output_mask)
    every = ops.attention_backward(*call, **args.options)
    for present, grad, full in zip(output_mask, grads, every, strict=True):
        assert (grad is not None) == present
        if present:
            assert_bitwise_equal("gradient", grad, full)


def test_backward_operator_without_any_cotangent_gives_zeros(device: torch.device) -> None:
    args = arguments(masking="bias_full", device=device)
    grads = ops.attention_backward(None, None, *args.tensors, *args(), **args.options)
    for x, grad in zip(args.leaves, grads, strict=True):
        assert grad.shape == x.shape and (grad == 0).all()


def test_backward_operator_without_a_bias_gives_no_gradient_of_it(device: torch.device) -> None:
    args = arguments(device=device)
    results = args()
    grads = ops.attention_backward(torch.ones_like(results[0]), None, *args.tensors, *results)
    assert grads[3] is None and all(g is not None for g in grads[:3])


@pytest.mark.parametrize("masking", [x for x in MASKINGS if x.startswith("bias")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_of_a_float32_bias_is_float32(
    masking: str, dtype: torch.dtype, device: torch.device
) -> None:
    args = arguments(
        (9, 11), masking=masking, dtype=dtype, wide_bias=True, device=device
    ).requires_grad()
    (grad,) = torch.autograd.grad(args()[0].sum(), [args.bias])
    assert grad.dtype == torch.float32 and grad.shape == args.bias.shape and grad.is_contiguous()
    assert grad.abs().max() > 0 or masking == "bias_rows" or masking == "bias_one_per_head"


def test_bias_of_no_dimensions(device: torch.device) -> None:
    args = arguments(dtype=torch.float64, device=device)
    args.bias = torch.tensor(0.5, dtype=torch.float64, device=device)
    check_backward(args)


@pytest.mark.parametrize("layout", ["contiguous", "heads_inside", "transposed"])
def test_gradients_keep_the_order_of_dimensions_in_memory(
    layout: str, device: torch.device
) -> None:
    args = arguments((5, 6), (8, 4), layout=layout, device=device)
    results = args()
    grads = ops.attention_backward(torch.ones_like(results[0]), None, *args.tensors, *results)
    for x, grad in zip(args.tensors, grads, strict=False):
        assert grad.stride() == x.stride()


def test_gradient_of_an_expanded_output(device: torch.device) -> None:
    """sum() sends back a cotangent whose strides are all zero."""
    args = arguments((17, 33), dtype=torch.float64, device=device).requires_grad()
    by_sum = torch.autograd.grad(args()[0].sum(), args.leaves)
    output = args()[0]
    by_ones = torch.autograd.grad(output, args.leaves, torch.ones_like(output))
    for a, b in zip(by_sum, by_ones, strict=True):
        assert_bitwise_equal("gradient", a, b)


def test_gradients_reach_one_projection_through_its_parts(device: torch.device) -> None:
    projected = torch.randn(2, 9, 3, 2, 4, dtype=torch.float64, device=device, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return ops.attention(*(x[:, :, i].transpose(1, 2) for i in range(3)), is_causal=True)

    assert gradcheck(f, projected, fast_mode=True)


def test_one_tensor_as_query_key_and_value(device: torch.device) -> None:
    x = torch.randn(2, 2, 6, 4, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: ops.attention(x, x, x), x, fast_mode=True)
