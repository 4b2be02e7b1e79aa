"""Attention as functions.

Shapes: `...` any number of batch dimensions, H query heads, Hkv key and value heads (Hkv divides
H: query head h reads key head h // (H / Hkv)), N queries, M keys, D size of a query and of a key,
E size of a value. 2-D tensors are one head, 3-D tensors are (heads, length, size).

Pass the options by name: only their names are promised. (They are not keyword-only because
TorchScript compiles no function that has keyword-only arguments with defaults.)
"""

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale * query @ key^T + bias) @ value over the visible keys of every query.

    The matrix of weights, N x M, is never stored, neither here nor in the backward pass.

    Args:
        query: (..., H, N, D), float64, float32, bfloat16 or float16; any strides.
        key: (..., Hkv, M, D), query's dtype. Batch dimensions broadcast.
        value: (..., Hkv, M, E), query's dtype. Batch dimensions broadcast.
        mask: bool, broadcastable to (..., H, N, M); True = attend.
        bias: added to the scaled scores (same unit as they: natural log of odds), broadcastable
            to (..., H, N, M); query's dtype, or float32 with a 16-bit query. -inf hides the key.
        is_causal: query i sees keys j <= i (top-left aligned when N != M). Together with `mask`
            and `bias` a key is visible only if all of them let it be.
        scale: multiplies query @ key^T; 1/sqrt(D) by default; any finite number.

    Returns:
        (..., H, N, E) in query's dtype and query's order of dimensions in memory. A query that
        sees no key gets 0, and zero gradients.

    Raises:
        RuntimeError: naming the argument, what was expected and what came.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1; tiled evaluation after
        Dao et al. 2022, "FlashAttention", and Milakov and Gimelshein 2018, "Online normalizer
        calculation for softmax"; grouped heads Ainslie et al. 2023, "GQA".
    """
    output: Tensor = torch.ops.torch_ext.attention(
        query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale
    )
    return output


def attention_with_logsumexp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention`, and the log of the sum that its softmax divides by.

    With it, attention over pieces a and b of the keys can be put together:
    lse = logaddexp(lse_a, lse_b), output = exp(lse_a - lse) output_a + exp(lse_b - lse) output_b.

    Args:
        query: (..., H, N, D), as for `attention`.
        key: (..., Hkv, M, D) with query's batch dimensions.
        value: (..., Hkv, M, E) with query's batch dimensions.
        mask: as for `attention`.
        bias: as for `attention`.
        is_causal: as for `attention`.
        scale: as for `attention`.

    Returns:
        The output, (..., H, N, E), and the logsumexp of each row of scores, (..., H, N), natural
        logarithm, float32 for 16-bit inputs and query's dtype otherwise; -inf for a query that
        sees no key. Both are differentiable.

    Raises:
        RuntimeError: naming the argument, what was expected and what came.

    Source: Dao et al. 2022, "FlashAttention", section 3.1 (the softmax statistics).
    """
    output, logsumexp, _ = torch.ops.torch_ext.attention_forward(
        query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale
    )
    return output, logsumexp


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Takes the place of `torch.nn.functional.scaled_dot_product_attention`, dropout apart.

    Same arguments, same meaning, same kinds of error. What differs: dropout is refused; `scale`
    must be finite and D positive (SDPA returns NaN or averages); `attn_mask` together with
    `is_causal` is always the error that SDPA documents, whereas its fused CPU kernel lets some
    shapes pass; a zero or negative `scale` with `is_causal` works (SDPA returns NaN on the CPU).
    A query that sees no key gets 0 in both.

    Args:
        query: (..., H, N, D).
        key: (..., H, M, D); dimensions before the last two broadcast, heads included.
        value: (..., H, M, E); as key.
        attn_mask: broadcastable to (..., H, N, M). bool: True = attend. Otherwise added to the
            scaled scores: query's dtype or float32.
        dropout_p: only 0.0.
        is_causal: query i sees keys j <= i.
        scale: multiplies query @ key^T; 1/sqrt(D) by default.
        enable_gqa: key and value may have fewer heads, a number that divides H. Without it a
            different number of heads is an error, unless it is 1 and broadcasts.

    Returns:
        (..., H, N, E) in query's dtype.

    Raises:
        NotImplementedError: dropout_p is not 0 (a kind of RuntimeError).
        RuntimeError: naming the argument, what was expected and what came; what the operator
            refuses in attn_mask it calls mask where that is bool, and bias elsewhere.

    Source: the documentation of `torch.nn.functional.scaled_dot_product_attention`.
    """
    if dropout_p != 0.0:
        raise NotImplementedError(
            "torch_ext.scaled_dot_product_attention: expected dropout_p to be 0.0 (dropout is "
            f"not implemented), but got {dropout_p}"
        )
    if attn_mask is not None and is_causal:
        raise RuntimeError(
            "torch_ext.scaled_dot_product_attention: expected attn_mask to be None when is_causal "
            "is True, as SDPA does; torch_ext.attention takes both and means their intersection"
        )
    mask: Tensor | None = None
    bias: Tensor | None = None
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            mask = attn_mask
        elif not attn_mask.is_floating_point():
            raise RuntimeError(
                "torch_ext.scaled_dot_product_attention: expected attn_mask to be bool, float32 "
                f"or query's dtype, but got {attn_mask.dtype}"
            )
        elif attn_mask.dtype == torch.float32 and query.dtype == torch.float64:
            bias = attn_mask.to(torch.float64)
        else:
            bias = attn_mask
    if enable_gqa:
        query, key, value = _align_grouped_heads(query, key, value)
    else:
        query, key, value = _broadcast(query, key, value, 2)
    return attention(query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale)


def _align_grouped_heads(
    query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives key and value the same number of heads, which SDPA does not ask for."""
    if query.dim() < 3 or key.dim() < 3 or value.dim() < 3:
        raise RuntimeError(
            "torch_ext.scaled_dot_product_attention: expected query, key and value to have a "
            f"dimension of heads when enable_gqa is True, but got shapes {list(query.shape)}, "
            f"{list(key.shape)} and {list(value.shape)}"
        )
    heads, key_heads, value_heads = query.size(-3), key.size(-3), value.size(-3)
    if key_heads != value_heads:
        if key_heads * value_heads == 0 or heads % key_heads != 0 or heads % value_heads != 0:
            raise RuntimeError(
                "torch_ext.scaled_dot_product_attention: expected the numbers of heads of key and "
                f"value to divide the {heads} heads of query, but got {key_heads} and {value_heads}"
            )
        key = key.repeat_interleave(heads // key_heads, dim=-3)
        value = value.repeat_interleave(heads // value_heads, dim=-3)
    return _broadcast(query, key, value, 3)


def _broadcast(
    query: Tensor, key: Tensor, value: Tensor, kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Broadcasts all dimensions but the last `kept` with views; ranks may differ, as in SDPA."""
    if query.shape[:-kept] == key.shape[:-kept] and key.shape[:-kept] == value.shape[:-kept]:
        return query, key, value
    rank = max(query.dim(), key.dim(), value.dim())
    shape = [1] * (rank - kept)
    for tensor in (query, key, value):
        missing = rank - tensor.dim()
        for i in range(tensor.dim() - kept):
            size = tensor.size(i)
            if shape[missing + i] == 1:
                shape[missing + i] = size
            elif size != 1 and size != shape[missing + i]:
                raise RuntimeError(
                    "torch_ext.scaled_dot_product_attention: expected query, key and value to "
                    "broadcast in the dimensions before the last two (fewer heads of key and "
                    f"value need enable_gqa=True), but got shapes {list(query.shape)}, "
                    f"{list(key.shape)} and {list(value.shape)}"
                )
    return (
        query.expand(shape + list(query.shape[-kept:])),
        key.expand(shape + list(key.shape[-kept:])),
        value.expand(shape + list(value.shape[-kept:])),
    )
