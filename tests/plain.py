"""The yardstick for rounding errors: attention as plain PyTorch operations in the dtype under test.

Matmul, softmax, matmul, differentiated by autograd: the gradients, the gradients of their inner
product with a direction, and the tangents, which are the gradients of that with respect to the
cotangents.
"""

from __future__ import annotations

from typing import Any

import torch
from calls import Arguments, Results
from reference import distances, kept, per_head, visibility
from torch import Tensor


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grad_output: Tensor | None = None,
    grad_logsumexp: Tensor | None = None,
    direction: dict[str, Tensor] | None = None,
    is_reversed: bool = False,
    **options: Any,
) -> Results:
    """Attention and its derivatives in query's dtype.

    With `is_reversed`, rows, keys and head size are in reverse order: other roundings, as plain.
    Its logsumexp has the dtype of the operator's (float32 for 16-bit inputs) and is computed from
    inputs cast to that dtype: a yardstick as fine as what it measures.
    """
    args = Arguments(query, key, value, **options).requires_grad()
    output, lse = forward(args, _reverse if is_reversed else lambda x: x)
    results = Results(output.detach(), lse.detach())
    has_cotangent = grad_output is not None or grad_logsumexp is not None
    if not has_cotangent and direction is None:
        return results
    given = (grad_output, grad_logsumexp)
    gs = [
        (torch.zeros_like(y) if g is None else g.to(y.dtype)).detach().requires_grad_()
        for y, g in zip((output, lse), given, strict=True)
    ]
    leaves = args.named_leaves
    twice = {"create_graph": direction is not None, "materialize_grads": True}
    grads = torch.autograd.grad((output, lse), leaves.values(), gs, **twice)
    if has_cotangent:
        for name, x in zip(leaves, grads, strict=True):
            setattr(results, f"grad_{name}", x.detach())
    if direction is not None:
        chosen = {name: x for name, x in direction.items() if x is not None}
        firsts = dict(zip(leaves, grads, strict=True))
        seconds = torch.autograd.grad(
            [firsts[name] for name in chosen],
            [*leaves.values(), *gs],
            [chosen[name].to(firsts[name].dtype) for name in chosen],
            materialize_grads=True,
        )
        results.output_tangent, results.logsumexp_tangent = seconds[-2:]
        if has_cotangent:
            for name, x in zip(leaves, seconds, strict=False):
                setattr(results, f"second_{name}", x)
    return results


def yardsticks(*tensors: Tensor, **options: Any) -> list[Results]:
    """`plain` in both orders: where few entries dominate, the errors of one are down to luck."""
    return [plain(*tensors, **options, is_reversed=x) for x in (False, True)]


def forward(args: Arguments, turn: Any) -> tuple[Tensor, Tensor]:
    """Output and logsumexp, with a graph."""
    lead, n, m = args.query.shape[:-2], args.query.shape[-2], args.key.shape[-2]
    device, dtype = args.query.device, args.query.dtype
    visible = turn(visibility(args).to(device))
    distance = turn(distances(args).abs().to(device, torch.float32))
    q, k, v = (turn(x) for x in args.tensors)
    bias = None if args.bias is None else turn(args.bias)
    slopes, sink = (
        None if x is None else per_head(x, args)[..., None, None] for x in (args.slopes, args.sink)
    )
    if q.dim() > 2:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    factor = args.query.shape[-1] ** -0.5 if args.scale is None else args.scale

    def scores(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scores, the sink's in a last column; and which rows have no score."""
        s = (q.to(dtype) @ k.to(dtype).mT) * factor
        if args.softcap is not None:
            s = args.softcap * torch.tanh(s / args.softcap)
        if bias is not None:
            s = s + bias.to(dtype)
        if slopes is not None:
            s = s - (slopes.to(args.wide_dtype) * distance.to(args.wide_dtype)).to(dtype)
        s = s.masked_fill(~visible, -torch.inf)
        if sink is not None:
            s = torch.cat([s, sink.to(dtype).expand(*lead, n, 1)], -1)
        empty = (s == -torch.inf).all(-1, keepdim=True)
        return s.masked_fill(empty, 0), empty

    s, empty = scores(dtype)
    weights = s.softmax(-1).masked_fill(empty, 0)[..., :m]
    if args.dropout_p > 0:
        weights = weights * turn(kept(args).to(device)) / (1 - args.dropout_p)
    s, empty = scores(args.wide_dtype)
    lse = s.logsumexp(-1, keepdim=True).masked_fill(empty, -torch.inf)
    return turn(weights @ v), turn(lse)[..., 0]


def _reverse(x: Tensor) -> Tensor:
    """Rows and columns in reverse order."""
    return x.flip([dim for dim in (-2, -1) if -dim <= x.dim()])
