"""`torch.nn.functional.scaled_dot_product_attention`, served by `torch_ext.attention`."""

import torch
from torch import Tensor

from torch_ext._checks import (
    BOOL,
    NUMBER,
    NUMBER_OR_NONE,
    TENSOR,
    TENSOR_OR_NONE,
    check_types,
    is_scripting,
    numbers_of_numpy,
)
from torch_ext.functional import attention


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
    """Takes the place of `torch.nn.functional.scaled_dot_product_attention`.

    Same arguments, same meaning, same kinds of error. What differs: nested tensors are refused;
    dropout keeps other weights for the same state of torch's generator; `scale` must be finite and
    D positive (SDPA returns NaN or averages); `attn_mask` together with `is_causal` is always the
    error that SDPA documents, whereas its fused CPU kernel lets some shapes pass; a zero or
    negative `scale` with `is_causal` works (SDPA returns NaN on the CPU), and so does an
    `attn_mask` with no dimension or with one, (M). A query that sees no key gets 0 in both.

    Args:
        query: (..., H, N, D).
        key: (..., H, M, D); dimensions before the last two broadcast, heads included.
        value: (..., H, M, E); as key.
        attn_mask: broadcastable to (..., H, N, M). bool: True = attend. Otherwise added to the
            scaled scores: query's dtype or float32.
        dropout_p: probability, from 0 to 1, with which a weight is set to 0; the others are divided
            by 1 - dropout_p. Applies whenever it is not 0: pass 0 outside training.
        is_causal: query i sees keys j <= i.
        scale: multiplies query @ key^T; 1/sqrt(D) by default.
        enable_gqa: key and value may have fewer heads, a number that divides H. Without it a
            different number of heads is an error, unless it is 1 and broadcasts.

    Returns:
        (..., H, N, E) in query's dtype.

    Raises:
        RuntimeError, TypeError: naming the argument, what was expected and what came; what the
            operator refuses in attn_mask it calls mask where that is bool, and bias elsewhere.

    Source: the documentation of `torch.nn.functional.scaled_dot_product_attention`.
    """
    is_usual = (
        isinstance(query, Tensor)
        and isinstance(key, Tensor)
        and isinstance(value, Tensor)
        and (attn_mask is None or isinstance(attn_mask, Tensor))
        and isinstance(dropout_p, float)
        and isinstance(is_causal, bool)
        and (scale is None or isinstance(scale, float))
        and isinstance(enable_gqa, bool)
        and not query.is_nested
    )
    if not is_usual and not is_scripting():
        name = "torch_ext.scaled_dot_product_attention"
        (scale,) = numbers_of_numpy(scale)
        check_types(name, TENSOR, query=query, key=key, value=value)
        check_types(name, TENSOR_OR_NONE, attn_mask=attn_mask)
        check_types(name, NUMBER, dropout_p=dropout_p)
        check_types(name, NUMBER_OR_NONE, scale=scale)
        check_types(name, BOOL, is_causal=is_causal, enable_gqa=enable_gqa)
        if query.is_nested:  # its shape cannot be asked for
            raise RuntimeError(f"{name}: expected query to be strided, but got a nested tensor")
    if not 0.0 <= dropout_p <= 1.0:
        raise RuntimeError(
            "torch_ext.scaled_dot_product_attention: expected dropout_p to be between 0 and 1, "
            f"but got {dropout_p}"
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
    if dropout_p == 1.0:  # nothing is kept, and there is nothing to divide by
        value, dropout_p = value * 0.0, 0.0
    return attention(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        is_causal=is_causal,
        scale=scale,
        dropout_p=dropout_p,
    )


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
    batch = key.shape[:-kept]
    if query.shape[:-kept] == batch and value.shape[:-kept] == batch:
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
