"""What attention means, twice: exactly, and as plain PyTorch operations compute it.

`exact` is the oracle: dense, one head at a time, with hidden entries left out of every sum. It
computes in float64, and for float64 inputs in the widest type NumPy has, as it must be finer than
what it judges. It builds its own visibility matrix and shares nothing with the kernels. `plain` is
the yardstick for rounding errors: matmul, softmax, matmul in the dtype under test, differentiated
by autograd.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor


@dataclass
class Results:
    """Everything attention yields. Gradients are None where no cotangent was given.

    Shapes: output (…, H, N, E), logsumexp (…, H, N), gradients as their inputs.

    `terms`: the oracle's largest terms of gradients that are sums of differences, see `_update`.
    """

    output: Tensor
    logsumexp: Tensor
    grad_query: Tensor | None = None
    grad_key: Tensor | None = None
    grad_value: Tensor | None = None
    grad_bias: Tensor | None = None
    terms: dict[str, float] = field(default_factory=dict)


TENSORS = ("output", "logsumexp", "grad_query", "grad_key", "grad_value", "grad_bias")


def visibility(
    query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor | None, is_causal: bool
) -> Tensor:
    """Which key each query may attend to: bool (…, H, N, M), the intersection of all rules."""
    rows, columns = query.shape[-2], key.shape[-2]
    visible = torch.ones(*query.shape[:-1], columns, dtype=torch.bool)
    if mask is not None:
        visible &= mask.cpu()
    if bias is not None:
        visible &= bias.detach().cpu() != -torch.inf
    if is_causal:
        visible &= torch.arange(columns)[None, :] <= torch.arange(rows)[:, None]
    return visible


def exact(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    grad_output: Tensor | None = None,
    grad_logsumexp: Tensor | None = None,
) -> Results:
    """Attention and its gradients, rounded to float64.

    An absent cotangent is zero where the other one is given; without both there are no gradients.
    """
    visible = visibility(query, key, mask, bias, is_causal).numpy()
    wide = np.longdouble if query.dtype == torch.float64 else np.float64
    lead, n, m, size = query.shape[:-2], query.shape[-2], key.shape[-2], value.shape[-1]
    heads = lead.numel()
    factor = wide(query.shape[-1]) ** wide(-0.5) if scale is None else wide(scale)

    def flat(x: Tensor, *shape: int) -> ndarray:
        """All heads of all samples in one dimension."""
        x = x.detach().cpu().double().numpy().astype(wide)
        return x.reshape(x.size // max(int(np.prod(shape)), 1), *shape)

    q, k, v = flat(query, n, key.shape[-1]), flat(key, m, key.shape[-1]), flat(value, m, size)
    seen = visible.reshape(heads, n, m)
    added = np.zeros((heads, n, m), wide)
    if bias is not None:
        added += flat(bias.expand(visible.shape), n, m)
    go, gl = np.zeros((heads, n, size), wide), np.zeros((heads, n), wide)
    if grad_output is not None:
        go += flat(grad_output, n, size)
    if grad_logsumexp is not None:
        gl += flat(grad_logsumexp, n)

    output, lse = np.zeros((heads, n, size), wide), np.full((heads, n), -np.inf, wide)
    dq, dk, dv, ds, sizes = (np.zeros_like(x) for x in (q, k, v, added, added))
    terms: dict[str, float] = {}
    with np.errstate(all="ignore"):
        for head in range(heads if n and m else 0):
            kv = head * (key.shape[:-2].numel()) // heads
            p, lse[head] = _weights(factor * (q[head] @ k[kv].T) + added[head], seen[head])
            output[head] = _product(p, seen[head], v[kv])
            delta = (go[head] * output[head]).sum(-1) - gl[head]
            dp = go[head] @ v[kv].T
            ds[head] = np.where(seen[head], p * (dp - delta[:, None]), 0)
            # Beside 16-bit results, the roundings within a product of float32 numbers do not show.
            product = abs(dp) if query.dtype.itemsize == 2 else abs(go[head]) @ abs(v[kv]).T
            sizes[head] = np.where(seen[head], p * (product + abs(delta[:, None])), 0)
            _update(terms, "grad_query", sizes[head].max(0)[:, None] * abs(factor * k[kv]))
            _update(terms, "grad_key", sizes[head].max(1)[:, None] * abs(factor * q[head]))
            dq[head] = factor * _product(ds[head], seen[head], k[kv])
            dk[kv] += factor * _product(ds[head].T, seen[head].T, q[head])
            dv[kv] += _product(p.T, seen[head].T, go[head])

    results = Results(_tensor(output, (*lead, n, size)), _tensor(lse, (*lead, n)))
    if grad_output is not None or grad_logsumexp is not None:
        results.grad_query, results.grad_key = _tensor(dq, query.shape), _tensor(dk, key.shape)
        results.grad_value, results.terms = _tensor(dv, value.shape), terms
        if bias is not None:
            results.grad_bias = _tensor(_sum_to(ds.reshape(visible.shape), bias.shape), bias.shape)
            # Within a row all share one rounding error; those of different rows are independent.
            shared = sizes.sum(-1, keepdims=True) if bias.shape[-1:] in ((), (1,)) else sizes
            shared = shared.reshape(*visible.shape[:-1], shared.shape[-1])
            _update(terms, "grad_bias", np.sqrt(_sum_to(shared**2, bias.shape)))
    return results


def _tensor(x: ndarray, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.asarray(x, np.float64).reshape(shape))


def _sum_to(x: ndarray, shape: tuple[int, ...]) -> ndarray:
    """Sums over the dimensions that something of this shape is broadcast over."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(dim for dim, size in enumerate(shape) if size == 1), keepdims=True)


def _update(terms: dict[str, float], name: str, x: ndarray) -> None:
    """Makes x part of the largest terms.

    The gradient of a score is a difference of two numbers; where a row sees few keys they all but
    cancel. Their own size, not that of what is left, decides how large rounding errors are.
    """
    largest = np.max(x, where=np.isfinite(x), initial=0)
    terms[name] = max(terms.get(name, 0.0), float(largest))


def _weights(scores: ndarray, visible: ndarray) -> tuple[ndarray, ndarray]:
    """Softmax over the visible scores (N, M) of each row, and its logsumexp (N)."""
    scores = np.where(visible, scores, -np.inf)
    largest = np.where(visible.any(-1), scores.max(-1), 0)
    exponentials = np.exp(scores - largest[:, None])
    total = exponentials.sum(-1)
    return np.where(visible, exponentials / total[:, None], 0), largest + np.log(total)


def _product(weights: ndarray, visible: ndarray, matrix: ndarray) -> ndarray:
    """weights (N, M) @ matrix (M, D), where hidden entries add nothing, whatever is there."""
    finite = np.isfinite(matrix).all(-1)
    result = weights[:, finite] @ matrix[finite]
    for column in np.flatnonzero(~finite):
        rows = visible[:, column]
        result[rows] += np.outer(weights[rows, column], matrix[column])
    return result


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    grad_output: Tensor | None = None,
    grad_logsumexp: Tensor | None = None,
    is_reversed: bool = False,
) -> Results:
    """Attention as matmul, softmax, matmul in query's dtype, with the gradients autograd finds.

    With `is_reversed`, rows, keys and head size are in reverse order: other roundings, as plain.
    Its logsumexp has the dtype of the operator's (float32 for 16-bit inputs) and is computed from
    inputs cast to that dtype: a yardstick as fine as what it measures.
    """
    visible = visibility(query, key, mask, bias, is_causal).to(query.device)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    inputs = [query, key, value, *([] if bias is None else [bias])]
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    turn = _reverse if is_reversed else lambda x: x
    visible, q, k, v, *added = (turn(x) for x in (visible, *leaves))
    if q.dim() > 2:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))

    def scores(dtype: torch.dtype) -> Tensor:
        s = (q.to(dtype) @ k.to(dtype).mT) * factor
        return sum((x.to(dtype) for x in added), start=s).masked_fill(~visible, -torch.inf)

    empty = ~visible.any(-1, keepdim=True)
    weights = scores(q.dtype).masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    output = turn(weights @ v)
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    lse = (
        scores(wide)
        .masked_fill(empty, 0)
        .logsumexp(-1, keepdim=True)
        .masked_fill(empty, -torch.inf)
    )
    lse = turn(lse)[..., 0]
    results = Results(output.detach(), lse.detach().to(wide))
    cotangents = [
        (y, g.to(y.dtype))
        for y, g in [(output, grad_output), (lse, grad_logsumexp)]
        if g is not None
    ]
    if cotangents:
        ys, gs = zip(*cotangents, strict=True)
        grads = torch.autograd.grad(ys, leaves, gs, materialize_grads=True)
        results.grad_query, results.grad_key, results.grad_value = grads[:3]
        results.grad_bias = grads[3] if bias is not None else None
    return results


def yardsticks(*tensors: Tensor, **options: Any) -> list[Results]:
    """`plain` in both orders: where few entries dominate, the errors of one are down to luck."""
    return [plain(*tensors, **options, is_reversed=x) for x in (False, True)]


def _reverse(x: Tensor) -> Tensor:
    """Rows and columns in reverse order."""
    return x.flip([dim for dim in (-2, -1) if -dim <= x.dim()])
