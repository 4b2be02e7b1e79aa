"""Attention as functions.

Shapes: `...` any number of batch dimensions, H query heads, Hkv key and value heads (Hkv divides
H: query head h reads key head h // (H / Hkv)), N queries, M keys, D size of a query and of a key,
E size of a value. 2-D tensors are one head, 3-D tensors are (heads, length, size).

Pass the options by name: only their names are promised. (They are not keyword-only because
TorchScript compiles no function that has keyword-only arguments with defaults.)

The real tensors can be differentiated: query, key, value, bias, slopes and sink, backward and
forward, any number of times; `attention_with_logsumexp` in both results. scale, softcap and
dropout_p are numbers, never learned; a learned scale is a factor of query.
"""

import torch
from torch import Tensor

from torch_ext._checks import (
    DTYPE_OR_NONE,
    INTEGER,
    check_call,
    check_type,
    is_scripting,
    numbers_of_numpy,
)
from torch_ext._library import operators

# Looked up once: a lookup in torch.ops takes time that small problems notice.
_attention = operators.attention
_attention_with_few_options = operators._attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    window_left: int | None = None,
    window_right: int | None = None,
    bottom_right: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    slopes: Tensor | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(scores) @ value over the visible keys of every query.

    Key j lies at distance j - i from query i, in positions; with `bottom_right` at distance
    j - i - (M - N). The scores, natural logarithms of odds, are

        score(i, j) = cap(scale * <query i, key j>) + bias(i, j) - slope * |distance|,

    where cap(x) is softcap * tanh(x / softcap), or x without `softcap`. Key j is visible to query i
    if and only if -window_left <= distance <= window_right, distance <= 0 with `is_causal`,
    mask(i, j) is True and bias(i, j) > -inf: options together mean the intersection.

    Nothing of size N x M is stored, neither here nor in first and second derivatives.

    Args:
        query: (..., H, N, D), float64, float32, bfloat16 or float16; any strides. A 2-D query, one
            head, goes with 2-D key and value alone.
        key: (..., Hkv, M, D), query's dtype. Batch dimensions broadcast.
        value: (..., Hkv, M, E), query's dtype. Batch dimensions broadcast.
        mask: bool, broadcastable to (..., H, N, M); True = attend.
        bias: added to the scores, broadcastable to (..., H, N, M); query's dtype, or float32 with a
            16-bit query. -inf hides the key.
        is_causal: hides keys at a distance above 0: query i sees keys j <= i.
        window_left: how many positions back a query sees, at least 0; unlimited by default.
        window_right: how many positions ahead a query sees, at least 0; unlimited by default.
        bottom_right: distances count from the end: the last query lies beside the last key, rather
            than the first beside the first. For queries that continue cached keys.
        scale: multiplies query @ key^T; 1/sqrt(D) by default; any finite number.
        softcap: bound of the scaled products, above 0; none by default.
        slopes: ALiBi, what a score loses per position of distance, broadcastable to (..., H), for
            2-D tensors () or (1); query's dtype, or float32 with a 16-bit query. See
            `alibi_slopes`.
        sink: score of one more key, visible to all queries and with value 0, so that a query may
            attend to nothing; shape and dtype as slopes. A head's weights then sum to less than 1.
        dropout_p: probability, in [0, 1), with which a weight is set to 0, each on its own, after
            the softmax; the others are divided by 1 - dropout_p. Applies whenever it is not 0: pass
            0 outside training.
        seed: int64, broadcastable to the batch dimensions (...): which weights dropout keeps. Equal
            seeds keep the same ones, whatever else is in the batch: one seed for all drops the same
            weights in every batch element. Drawn from torch's generator by default, one for each
            batch element; ignored where dropout_p is 0.

    Returns:
        (..., H, N, E) in query's dtype and query's order of dimensions in memory. A query that
        sees no key gets 0, and zero gradients.

    Raises:
        RuntimeError, TypeError: naming the argument, what was expected and what came.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1; tiled evaluation after
        Dao et al. 2022, "FlashAttention", and Milakov and Gimelshein 2018, "Online normalizer
        calculation for softmax"; grouped heads Ainslie et al. 2023, "GQA"; window Beltagy et al.
        2020, "Longformer"; softcap Gemma Team 2024, "Gemma 2"; slopes Press et al. 2022, "Train
        Short, Test Long" (ALiBi); sink Xiao et al. 2023, "Efficient Streaming Language Models with
        Attention Sinks", as a learned score as in OpenAI 2025, "gpt-oss"; dropout Srivastava et al.
        2014, with the numbers of Salmon et al. 2011, "Parallel Random Numbers" (Philox).
    """
    # The usual calls: handing all options over would take longer than a small problem.
    is_usual = (
        window_left is None
        and window_right is None
        and isinstance(bottom_right, bool)
        and not bottom_right
        and softcap is None
        and slopes is None
        and sink is None
        and isinstance(dropout_p, float)
        and dropout_p == 0.0
        and seed is None
        and isinstance(is_causal, bool)
        and (scale is None or isinstance(scale, float))
        and isinstance(query, Tensor)
        and isinstance(key, Tensor)
        and isinstance(value, Tensor)
    )
    if is_usual and mask is None and bias is None:
        output: Tensor = _attention_with_few_options(query, key, value, is_causal, scale)
    elif (
        is_usual
        and (mask is None or isinstance(mask, Tensor))
        and (bias is None or isinstance(bias, Tensor))
    ):
        output = _attention_with_few_options(query, key, value, is_causal, scale, mask, bias)
    else:
        if not is_scripting():
            scale, softcap = numbers_of_numpy(scale, softcap)
            check_call(
                "torch_ext.attention",
                (query, key, value),
                mask,
                bias,
                is_causal,
                window_left,
                window_right,
                bottom_right,
                scale,
                softcap,
                slopes,
                sink,
                dropout_p,
                seed,
            )
        output = _attention(
            query,
            key,
            value,
            mask,
            bias,
            is_causal,
            window_left,
            window_right,
            bottom_right,
            scale,
            softcap,
            slopes,
            sink,
            dropout_p,
            seed,
        )
    return output


def attention_with_logsumexp(  # noqa: D417 - the options are described once
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    window_left: int | None = None,
    window_right: int | None = None,
    bottom_right: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    slopes: Tensor | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention`, and the log of the sum that its softmax divides by.

    With it, attention over pieces of the keys, output_a and lse_a, output_b and lse_b, can be put
    together, and every derivative of it is that of attention over all keys. A row that sees no key
    of any piece stays 0:

        lse = torch.stack((lse_a, lse_b))
        lse = lse.masked_fill(lse == -torch.inf, torch.finfo(lse.dtype).min)
        shares = lse.softmax(0).unsqueeze(-1)
        output = (shares * torch.stack((output_a, output_b))).sum(0)

    Args:
        query: (..., H, N, D), as for `attention`.
        key: (..., Hkv, M, D) with query's batch dimensions.
        value: (..., Hkv, M, E) with query's batch dimensions.

    The options, from mask to seed, are those of `attention`.

    Returns:
        The output, (..., H, N, E), and the logsumexp of each row of scores, (..., H, N), natural
        logarithm, float32 for 16-bit inputs and query's dtype otherwise. It counts the sink and is
        taken before dropout. For a query that sees no key it is the sink, -inf without one. Both
        are differentiable.

    Raises:
        RuntimeError, TypeError: naming the argument, what was expected and what came.

    Source: Dao et al. 2022, "FlashAttention", section 3.1 (the softmax statistics).
    """
    if not is_scripting():
        scale, softcap = numbers_of_numpy(scale, softcap)
        check_call(
            "torch_ext.attention_with_logsumexp",
            (query, key, value),
            mask,
            bias,
            is_causal,
            window_left,
            window_right,
            bottom_right,
            scale,
            softcap,
            slopes,
            sink,
            dropout_p,
            seed,
        )
    if dropout_p > 0.0 and seed is None:  # as the operator torch_ext::attention draws it
        seed = torch.randint(
            0x7FFFFFFFFFFFFFFF, query.shape[:-3], dtype=torch.int64, device=query.device
        )
    output, logsumexp, _ = torch.ops.torch_ext.attention_forward(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        is_causal=is_causal,
        window_left=window_left,
        window_right=window_right,
        bottom_right=bottom_right,
        scale=scale,
        softcap=softcap,
        slopes=slopes,
        sink=sink,
        dropout_p=dropout_p,
        seed=seed,
    )
    return output, logsumexp


def alibi_slopes(
    heads: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """The slopes of ALiBi, from steep heads that look nearby to flat ones that look far.

    Head h = 1 ... H has slope 2^(-8 h / H) where H is a power of two. Otherwise the slopes are
    those of the next lower power of two, followed by every other one of the next higher.

    Args:
        heads: number of heads, H, at least 1.
        dtype: floating point; torch's default by default.
        device: where to put them.

    Returns:
        (H), in score per position, for `attention`'s option `slopes`.

    Raises:
        TypeError: heads is not an integer, or dtype is no torch.dtype.
        ValueError: heads is below 1, or dtype is not floating point.

    Source: Press et al. 2022, "Train Short, Test Long", section 3, and the code published with it.
    """
    check_type("alibi_slopes", INTEGER, "heads", heads)
    heads = int(heads)
    if heads < 1:
        raise ValueError(f"alibi_slopes: expected heads to be at least 1, but got {heads}")
    check_type("alibi_slopes", DTYPE_OR_NONE, "dtype", dtype)
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"alibi_slopes: expected dtype to be floating point, but got {dtype}")
    lower = 1 << (heads.bit_length() - 1)
    exponents = [8 * (h + 1) / lower for h in range(lower)]
    exponents += [4 * (2 * h + 1) / lower for h in range(heads - lower)]
    return torch.tensor([2.0**-e for e in exponents], dtype=dtype, device=device)
