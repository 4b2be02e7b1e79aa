"""First and second derivatives run as the fused operators, in every mode, and compute only what is
asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from calls import LEAVES, Arguments
from cases import DTYPES
from differentiation import EVERYTHING, Function, Recorder, SmallCase, directions, functions, scalar
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

ops = torch.ops.torch_ext

# What attention as a composition of ordinary operations would need.
DENSE = {
    "bmm", "mm", "matmul", "addmm", "baddbmm", "einsum", "exp", "tanh", "logsumexp",
    "_softmax", "_safe_softmax", "_softmax_backward_data",
    "_scaled_dot_product_flash_attention_for_cpu",
}  # fmt: skip


def recorded(run: Callable[[], Any]) -> Recorder:
    """Runs something that must not leave the fused operators."""
    with Recorder() as recorder:
        run()
    used = {name.removeprefix("aten::") for name in recorder.names}
    assert not used & DENSE, used & DENSE
    return recorder


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=[SmallCase(), EVERYTHING], ids=["plain", "everything"])
def args(request: pytest.FixtureRequest, dtype: torch.dtype, device: torch.device) -> Arguments:
    return request.param.arguments(device, dtype)


def with_argnums(args: Arguments) -> tuple[Function, tuple[Tensor, ...], tuple[int, ...]]:
    """A scalar function of everything that can be differentiated."""
    ours, _, leaves = functions(args)
    return scalar(ours), leaves, tuple(range(len(leaves)))


def test_dense_operations_would_be_seen(device: torch.device) -> None:
    _, dense, leaves = functions(EVERYTHING.arguments(device))
    with pytest.raises(AssertionError, match="bmm"):
        recorded(lambda: dense(*leaves))


def test_backward(args: Arguments) -> None:
    f, leaves, n = with_argnums(args)
    assert recorded(lambda: grad(f, n)(*leaves)).fused == ["forward", "backward"]


def test_double_backward(args: Arguments) -> None:
    f, leaves, _ = with_argnums(args)
    leaves = [x.requires_grad_() for x in leaves]

    def penalty() -> None:
        gradients = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
        sum(g.square().sum() for g in gradients).backward()

    # Once more through the forward: the gradient of output depends on it.
    assert recorded(penalty).fused == ["forward", "backward", "second_order", "backward"]


def test_forward_mode(args: Arguments) -> None:
    f, leaves, _ = with_argnums(args)
    recorder = recorded(lambda: jvp(f, leaves, directions(leaves)))
    assert recorder.fused == ["forward", "tangent"]


def test_forward_over_reverse(args: Arguments) -> None:
    f, leaves, n = with_argnums(args)
    recorder = recorded(lambda: jvp(grad(f, n), leaves, directions(leaves)))
    # The tangent of the gradient has two parts: those of the inputs and of the gradient of output.
    assert recorder.fused == ["forward", "tangent", "backward", "second_order", "backward"]


def test_reverse_over_forward(args: Arguments) -> None:
    f, leaves, n = with_argnums(args)
    tangents = directions(leaves)
    recorder = recorded(lambda: grad(lambda *x: jvp(f, x, tangents)[1], n)(*leaves))
    assert recorder.fused == ["forward", "tangent", "second_order", "backward"]


def test_reverse_over_reverse(args: Arguments) -> None:
    f, leaves, n = with_argnums(args)

    def slope(*x: Tensor) -> Tensor:
        return sum(g.sum() for g in grad(f, n)(*x))

    recorder = recorded(lambda: grad(slope, n)(*leaves))
    assert recorder.fused == ["forward", "backward", "second_order", "backward"]


@pytest.mark.parametrize(
    "transform",
    [
        hessian,
        lambda f, n: jacrev(jacrev(f, n), n),
        lambda f, n: jacrev(jacfwd(f, n), n),
        lambda f, n: jacfwd(f, n),
    ],
    ids=["hessian", "jacrev_of_jacrev", "jacrev_of_jacfwd", "jacfwd"],
)
def test_matrices_of_derivatives(transform: Any, args: Arguments) -> None:
    """Batches of directions are one call of each operator, not one per direction."""
    f, leaves, _ = with_argnums(args)
    recorder = recorded(lambda: transform(f, 0)(*leaves))
    assert len(recorder.fused) <= 5, recorder.fused


def test_gradients_per_sample(args: Arguments) -> None:
    f, leaves, n = with_argnums(args)
    batched = tuple(torch.stack([x, x + 1]) for x in leaves)
    recorder = recorded(lambda: vmap(grad(f, n))(*batched))
    assert recorder.fused == ["forward", "backward"]


# Only what is asked for


@pytest.mark.parametrize("wanted", [*LEAVES, ("key", "sink"), ("query", "value", "slopes")])
def test_only_wanted_gradients_are_computed(
    wanted: str | tuple[str, ...], device: torch.device
) -> None:
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    mask = tuple(name in names for name in LEAVES)
    args = EVERYTHING.arguments(device)
    args.bias = args.bias.nan_to_num(neginf=0)
    for name, x in args.named_leaves.items():
        x.requires_grad_(name in names)
    leaves = [x for x in args.leaves if x.requires_grad]
    with Recorder() as recorder:
        output, lse, _ = args()
        gradients = torch.autograd.grad((output.sum() + lse.sum()), leaves, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
    assert recorder.masks("backward") == [mask]
    # The gradients of output and logsumexp were constants.
    assert recorder.masks("second_order") == [(*mask, False, False)]


def test_inputs_of_backward_decide_too(device: torch.device) -> None:
    args = EVERYTHING.arguments(device).requires_grad()
    output, _, _ = args()
    with Recorder() as recorder:
        torch.autograd.grad(output.sum(), [args.key, args.sink])
    assert recorder.masks("backward") == [(False, True, False, False, False, True)]


def test_gradient_of_the_cotangent_alone(device: torch.device) -> None:
    """The trick that makes a tangent of two backward passes, differentiated once more."""
    args = SmallCase().arguments(device)
    output, _, _ = args.requires_grad()()
    cotangent = torch.zeros_like(output).requires_grad_()
    args = args.requires_grad()
    with Recorder() as recorder:
        output, _, _ = args()
        gradients = torch.autograd.grad(output, args.leaves, cotangent, create_graph=True)
        (tangent,) = torch.autograd.grad(
            gradients, cotangent, directions(gradients), create_graph=True
        )
        torch.autograd.grad(tangent.sum(), args.query)
    assert recorder.fused == ["forward", "backward", "tangent", "second_order"]


def test_tangents_are_not_differentiated_unless_asked(device: torch.device) -> None:
    args = SmallCase().arguments(device)
    ours, _, leaves = functions(args)
    tangents = directions(leaves)
    with Recorder() as recorder:
        grad(lambda *x: jvp(ours, x, tangents)[1][0].sum())(*leaves)
    assert recorder.fused == ["forward", "tangent", "second_order"]
    assert recorder.masks("second_order") == [(True, *[False] * 7)]
    with Recorder() as recorder:
        grad(lambda t: jvp(ours, leaves, (t, *tangents[1:]))[1][0].sum())(tangents[0])
    assert recorder.fused == ["forward", "tangent", "backward"]
    assert recorder.masks("backward") == [(True, *[False] * 5)]


def test_tangent_of_a_gradient_computes_that_gradient_alone(device: torch.device) -> None:
    args = EVERYTHING.arguments(device)
    f, leaves, _ = with_argnums(args)
    with Recorder() as recorder:
        jvp(grad(f, argnums=1), leaves, directions(leaves))
    alone = (False, True, False, False, False, False)
    assert recorder.masks("backward") == [alone, alone]
    assert recorder.masks("second_order") == [(*alone, False, False)]
