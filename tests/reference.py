"""What attention means, exactly: the oracle.

Dense, one head at a time, with hidden entries left out of every sum. It computes in float64, and
for float64 inputs in the widest type NumPy has, as it must be finer than what it judges. It builds
its own visibility matrix and shares nothing with the kernels but the random numbers of dropout,
which have a test of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from calls import LEAVES, Arguments, Results
from numpy import ndarray
from one_head import Head, Inputs, Rules
from torch import Tensor


def distances(args: Arguments) -> Tensor:
    """j - i - offset of key j and query i: int64 (N, M)."""
    rows, columns = args.query.shape[-2], args.key.shape[-2]
    offset = columns - rows if args.bottom_right else 0
    return torch.arange(columns)[None, :] - torch.arange(rows)[:, None] - offset


def visibility(args: Arguments) -> Tensor:
    """Which key each query may attend to: bool (…, H, N, M), the intersection of all rules."""
    distance = distances(args)
    visible = torch.ones(*args.query.shape[:-2], *distance.shape, dtype=torch.bool)
    if args.mask is not None:
        visible &= args.mask.cpu()
    if args.bias is not None:
        visible &= args.bias.detach().cpu() != -torch.inf
    if args.is_causal:
        visible &= distance <= 0
    if args.window_left is not None:
        visible &= distance >= -args.window_left
    if args.window_right is not None:
        visible &= distance <= args.window_right
    return visible


def kept(args: Arguments) -> Tensor:
    """Which weights dropout keeps: bool (…, H, N, M)."""
    *batch, heads = [*args.query.shape[:-2]] or [1]
    n, m = args.query.shape[-2], args.key.shape[-2]
    seed = args.seed.expand(batch)
    keep = torch.ops.torch_ext._dropout_mask(seed, heads, n, m, args.dropout_p)
    return keep.cpu().reshape(*args.query.shape[:-2], n, m)


def exact(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grad_output: Tensor | None = None,
    grad_logsumexp: Tensor | None = None,
    direction: dict[str, Tensor] | None = None,
    **options: Any,
) -> Results:
    """Attention; with cotangents also gradients, with a direction tangents, with both everything.

    An absent cotangent or tangent is zero where another one is given. Rounded to float64.
    """
    args = Arguments(query, key, value, **options)
    has_cotangent = grad_output is not None or grad_logsumexp is not None
    rows = query.shape[:-1]
    go = _flat(args, grad_output, (*rows, value.shape[-1]), inner=2)
    gl = _flat(args, grad_logsumexp, rows, inner=1)
    directions = _heads(args, direction or {})
    found: dict[str, list[ndarray]] = {}
    terms: dict[str, float] = {}
    with np.errstate(all="ignore"):
        for i, (x, rules) in enumerate(
            zip(_heads(args, args.named_leaves), _rules(args), strict=True)
        ):
            if args.sink is None:
                x.sink = np.array(-np.inf)
            head = Head(x, rules)
            results = {"output": head.output, "logsumexp": head.lse}
            if has_cotangent:
                results |= head.gradients(go[i], gl[i])
            if direction is not None:
                results |= head.tangents(directions[i])
            if has_cotangent and direction is not None:
                results |= head.second_order(directions[i])
            for name, y in results.items():
                found.setdefault(name, []).append(y)
            for name, size in head.terms.items():
                terms[name] = max(terms.get(name, 0.0), size)
        return _assemble(args, {name: np.stack(x) for name, x in found.items()}, terms)


def per_head(x: Tensor, args: Arguments) -> Tensor:
    """Slopes or sink in the shape (…, H)."""
    lead = args.query.shape[:-2]
    return x.expand(lead) if lead else x.reshape(())


def _wide(args: Arguments) -> type:
    return np.longdouble if args.query.dtype == torch.float64 else np.float64


def _flat(args: Arguments, x: Tensor | None, shape: tuple[int, ...], *, inner: int) -> ndarray:
    """x broadcast to this shape, all its dimensions but the inner ones in one. Absent: zeros."""
    flat = (math.prod(shape[: len(shape) - inner]), *shape[len(shape) - inner :])
    if x is None:
        return np.zeros(flat, _wide(args))
    return x.detach().cpu().double().expand(shape).numpy().astype(_wide(args)).reshape(flat)


def _heads(args: Arguments, leaves: dict[str, Tensor]) -> list[Inputs]:
    """What each head of the query reads."""
    lead, (n, m) = args.query.shape[:-2], distances(args).shape
    arrays = {
        x: _flat(args, leaves.get(x), tuple(getattr(args, x).shape), inner=2) for x in LEAVES[:3]
    }
    arrays["bias"] = _flat(args, leaves.get("bias"), (*lead, n, m), inner=2)
    for name in ("slopes", "sink"):
        x = leaves.get(name)
        arrays[name] = _flat(args, None if x is None else per_head(x, args), lead, inner=0)
    count = lead.numel()
    group = max(count // max(args.key.shape[:-2].numel(), 1), 1)
    return [
        Inputs(*(arrays[x][i // group if x in ("key", "value") else i] for x in LEAVES))
        for i in range(count)
    ]


def _rules(args: Arguments) -> list[Rules]:
    """For each head of the query."""
    wide = _wide(args)
    shape = (args.query.shape[:-2].numel(), *distances(args).shape)
    visible = visibility(args).reshape(shape).numpy()
    keep = np.ones(shape, wide)
    if args.dropout_p > 0:
        keep = kept(args).reshape(shape).numpy() / (1 - wide(args.dropout_p))
    size = args.query.shape[-1]
    return [
        Rules(
            seen=visible[i],
            distance=distances(args).abs().numpy().astype(wide),
            keep=keep[i],
            factor=wide(size) ** wide(-0.5) if args.scale is None else wide(args.scale),
            softcap=wide(np.inf if args.softcap is None else args.softcap),
            is_narrow=args.query.dtype.itemsize == 2,
        )
        for i in range(shape[0])
    ]


def _assemble(args: Arguments, found: dict[str, ndarray], terms: dict[str, float]) -> Results:
    """All heads in one tensor, gradients summed over what their input was broadcast over."""
    lead, n = args.query.shape[:-2], args.query.shape[-2]
    kv_heads = args.key.shape[:-2].numel()
    group = lead.numel() // max(kv_heads, 1)
    results = Results(terms=terms)

    def put(name: str, x: ndarray, shape: tuple[int, ...]) -> None:
        setattr(results, name, torch.from_numpy(np.asarray(x, np.float64).reshape(shape)))

    for name in ("output", "output_tangent"):
        if name in found:
            put(name, found[name], (*lead, n, args.value.shape[-1]))
    for name in ("logsumexp", "logsumexp_tangent"):
        if name in found:
            put(name, found[name], (*lead, n))
    for kind in ("grad", "second"):
        if f"{kind}_query" not in found:
            continue
        put(f"{kind}_query", found[f"{kind}_query"], args.query.shape)
        for name in ("key", "value"):
            x, shape = found[f"{kind}_{name}"], getattr(args, name).shape
            put(f"{kind}_{name}", x.reshape(kv_heads, group, *shape[-2:]).sum(1), shape)
        for name, x, rows in _sums(args, kind, found):
            shape = tuple(getattr(args, name).shape)
            put(f"{kind}_{name}", _sum_to(x, shape), shape)
            # Within a row all share one rounding error; those of different rows are independent.
            size = np.sqrt(_sum_to(rows**2, shape))
            terms[f"{kind}_{name}"] = float(np.max(size, where=np.isfinite(size), initial=0))
    return results


def _sums(
    args: Arguments, kind: str, found: dict[str, ndarray]
) -> Iterator[tuple[str, ndarray, ndarray]]:
    """Of bias, slopes and sink: name, what is summed to the gradient, and its sizes."""
    lead, (n, m) = args.query.shape[:-2], distances(args).shape
    scores, sizes = (found[f"{kind}_scores{x}"].reshape(*lead, n, m) for x in ("", "_size"))
    if args.bias is not None:
        is_row = args.bias.shape[-1:] in ((), (1,))
        yield "bias", scores, sizes.sum(-1, keepdims=True) if is_row else sizes
    if args.slopes is not None:
        distance = distances(args).abs().numpy()
        rows = (sizes * distance).sum(-1)
        yield "slopes", -(scores * distance).sum((-2, -1)), np.sqrt((rows**2).sum(-1))
    if args.sink is not None:
        rows = found[f"{kind}_sink_size"].reshape(*lead, n)
        sums = found[f"{kind}_sink"].reshape(*lead, n).sum(-1)
        yield "sink", sums, np.sqrt((rows**2).sum(-1))


def _sum_to(x: ndarray, shape: tuple[int, ...]) -> ndarray:
    """Sums over the dimensions that something of this shape is broadcast over."""
    x = x.sum(tuple(range(x.ndim - len(shape)))) if x.ndim >= len(shape) else x.reshape(shape)
    return x.sum(tuple(dim for dim, size in enumerate(shape) if size == 1), keepdims=True)
