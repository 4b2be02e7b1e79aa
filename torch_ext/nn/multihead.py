"""Multi-head attention with learned projections."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torch_ext._checks import BOOL, TENSOR_OR_NONE, check_types, is_scripting
from torch_ext.functional import alibi_slopes, attention
from torch_ext.nn._checks import (
    check_input,
    check_masks,
    check_options,
    check_rotary,
    check_sizes,
    project,
)
from torch_ext.nn.positions import RotaryEmbedding


class MultiheadAttention(nn.Module):
    """concat_h(attention(query W_Q_h, key W_K_h, value W_V_h)) W_O, self- and cross-attention.

    W_Q, W_K, W_V and W_O are the linear layers `q_proj`, `k_proj`, `v_proj` and `out_proj`.

    `load_state_dict` also takes the state of a `torch.nn.MultiheadAttention` and then computes what
    that module does with batch_first=True, add_bias_kv and add_zero_attn off (with dropout, which
    drops attention weights in both, the same but for the random numbers). Differences to mind: the
    result is the output alone, no tuple; the fourth argument is `mask`, not key_padding_mask: pass
    masks by name; and **here, as in SDPA, a bool mask says True = attend; in
    torch.nn.MultiheadAttention True = hide**, for `attn_mask` and for `key_padding_mask`. So
    `attn_mask=hidden` there is `mask=~hidden` here, `key_padding_mask=padding` there is
    `key_mask=~padding` here, and a float `attn_mask` there is `bias` here; a mask per head,
    (B * H, N, M) there, is (B, H, N, M) here.
    (Asked for its weights, torch.nn gives NaN to a query that sees no key; here its heads give 0,
    and the output is out_proj's bias.)

    Args:
        embed_dim: size of the vectors of query and of the output.
        num_heads: heads of the query, H; divides embed_dim. Heads have size embed_dim / num_heads.
        num_kv_heads: heads of key and value, Hkv; divides num_heads; num_heads by default. 1 is
            multi-query attention.
        bias: whether the four projections add a learned vector.
        kdim: size of the vectors of key; embed_dim by default.
        vdim: size of the vectors of value; embed_dim by default.
        dropout: probability, in [0, 1), with which an attention weight is set to 0 while training;
            drawn from torch's generator.
        window_left: how many positions back a query sees; unlimited by default.
        window_right: how many positions ahead a query sees; unlimited by default.
        bottom_right: is_causal, the window and ALiBi count distances from the end: the last query
            lies beside the last key, rather than the first beside the first.
        scale: multiplies the products of queries and keys, any finite number;
            1/sqrt(embed_dim / num_heads) by default.
        softcap: bound of the scaled products, above 0; none by default.
        alibi: scores fall with the distance. "fixed": by `torch_ext.alibi_slopes`, the buffer
            `slopes`, which is not part of the state; "learned": they are where the parameter
            `slopes`, (num_heads), starts; None: not at all.
        sink: whether each head learns the score of one more key whose value is 0, the parameter
            `sink`, (num_heads), 0 at first.
        rotary: turns queries and keys by their positions, 0 .. N - 1 and 0 .. M - 1, before the
            scores are taken; its head_size is embed_dim / num_heads. There is no offset: to decode
            with cached keys, project, apply `RotaryEmbedding` with its offset and call
            `torch_ext.attention` yourself.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: naming the argument that is of another type than the above.
        ValueError: num_heads does not divide embed_dim, num_kv_heads does not divide num_heads,
            rotary is for another head size, or an option is out of range.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2; grouped heads Ainslie
        et al. 2023, "GQA"; Shazeer 2019, "Fast Transformer Decoding".
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        window_left: int | None = None,
        window_right: int | None = None,
        bottom_right: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        alibi: Literal["fixed", "learned"] | None = None,
        sink: bool = False,
        rotary: RotaryEmbedding | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        check_sizes(embed_dim, num_heads, num_kv_heads, kdim, vdim)
        check_options(dropout, window_left, window_right, scale, softcap, alibi, dtype)
        check_types("MultiheadAttention", BOOL, bias=bias, bottom_right=bottom_right, sink=sink)
        embed_dim, num_heads, num_kv_heads = int(embed_dim), int(num_heads), int(num_kv_heads)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_size = embed_dim // num_heads
        check_rotary(rotary, self.head_size)
        self.dropout = float(dropout)
        self.window_left = None if window_left is None else int(window_left)
        self.window_right = None if window_right is None else int(window_right)
        self.bottom_right = bottom_right
        self.scale = None if scale is None else float(scale)
        self.softcap = None if softcap is None else float(softcap)
        self.alibi = alibi
        kv_dim = num_kv_heads * self.head_size
        self.kdim = int(kdim)
        self.vdim = int(vdim)
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(self.kdim, kv_dim, bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(self.vdim, kv_dim, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, device=device, dtype=dtype)
        self.rotary = rotary
        per_head = torch.empty(num_heads, device=device, dtype=dtype)
        if alibi == "learned":
            self.slopes: Tensor | None = nn.Parameter(per_head.clone())
        else:
            slopes = per_head.clone() if alibi == "fixed" else None
            self.register_buffer("slopes", slopes, persistent=False)
        self.sink: Tensor | None = nn.Parameter(per_head) if sink else None
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(_unpack_torch_state)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_move_fixed_slopes)  # type: ignore[no-untyped-call]

    def reset_parameters(self) -> None:
        """Weights uniform as in Glorot and Bengio 2010, vectors and sinks 0, slopes ALiBi's."""
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        self._fill_slopes()
        if self.sink is not None:
            nn.init.zeros_(self.sink)

    def _fill_slopes(self) -> None:
        if self.slopes is not None:
            with torch.no_grad():
                device = self.slopes.device
                self.slopes.copy_(alibi_slopes(self.num_heads, torch.float64, device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MultiheadAttention":
        """Fixed slopes are not part of the state: whatever moves the module fills them again.

        `to_empty`, and so `torch.nn.utils.skip_init`, would leave them without a value.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.alibi == "fixed":
            self._fill_slopes()
        return self

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        key_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Lets every query gather values from the keys that it sees.

        Args:
            query: (..., N, embed_dim).
            key: (..., M, kdim); query by default (self-attention).
            value: (..., M, vdim); key by default.
            mask: bool, broadcastable to (..., H, N, M); True = attend.
            bias: added to the scores, broadcastable to (..., H, N, M); -inf hides.
            key_mask: bool, (..., M); True = a real key, False = padding that no query sees. With
                `mask` together it takes memory for their intersection, B N M bytes.
            is_causal: query i sees keys j <= i; with bottom_right counted from the end. All four
                and the window together mean their intersection.

        Returns:
            (..., N, embed_dim).

        Raises:
            RuntimeError, TypeError: query, key or value is not floating point or not of the shape
                above; key_mask or mask is not bool, or does not fit; or what `attention` raises.
        """
        if not is_scripting():
            check_types("MultiheadAttention", TENSOR_OR_NONE, key=key, value=value)
            check_types("MultiheadAttention", TENSOR_OR_NONE, mask=mask, key_mask=key_mask)
        if key is None:
            key = query
        if value is None:
            value = key
        check_input("MultiheadAttention", "query", query, "embed_dim", self.embed_dim)
        check_input("MultiheadAttention", "key", key, "kdim", self.kdim)
        check_input("MultiheadAttention", "value", value, "vdim", self.vdim)
        if key_mask is not None:
            check_masks(key, key_mask, mask)
            visible = key_mask[..., None, None, :]
            mask = visible if mask is None else mask & visible
        if is_scripting():
            q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        else:
            q = project("MultiheadAttention", "query", query, self.q_proj)
            k = project("MultiheadAttention", "key", key, self.k_proj)
            v = project("MultiheadAttention", "value", value, self.v_proj)
        q = self._split_heads(q, self.num_heads)
        k = self._split_heads(k, self.num_kv_heads)
        v = self._split_heads(v, self.num_kv_heads)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        o = attention(
            q,
            k,
            v,
            mask=mask,
            bias=bias,
            is_causal=is_causal,
            window_left=self.window_left,
            window_right=self.window_right,
            bottom_right=self.bottom_right,
            scale=self.scale,
            softcap=self.softcap,
            slopes=self.slopes,
            sink=self.sink,
            dropout_p=self.dropout if self.training else 0.0,
        )
        output: Tensor = self.out_proj(o.transpose(-3, -2).flatten(-2))
        return output

    def _split_heads(self, x: Tensor, heads: int) -> Tensor:
        """(..., N, heads * head_size) -> (..., heads, N, head_size), a view."""
        split: Tensor = x.unflatten(-1, (heads, self.head_size))  # type: ignore[no-untyped-call]
        return split.transpose(-3, -2)

    def extra_repr(self) -> str:
        """What print shows between the parentheses."""
        text = f"{self.embed_dim}, {self.num_heads}, num_kv_heads={self.num_kv_heads}"
        options = (
            ("dropout", self.dropout, 0.0),
            ("window_left", self.window_left, None),
            ("window_right", self.window_right, None),
            ("bottom_right", self.bottom_right, False),
            ("scale", self.scale, None),
            ("softcap", self.softcap, None),
            ("alibi", self.alibi, None),
            ("sink", self.sink is not None, False),
        )
        chosen = [f", {name}={value!r}" for name, value, default in options if value != default]
        return text + "".join(chosen)


def _unpack_torch_state(
    module: nn.Module, state: dict[str, Any], prefix: str, *details: Any
) -> None:
    """Renames the entries of a torch.nn.MultiheadAttention's state, in place, before they load.

    There W_Q, W_K, W_V are one matrix, in_proj_weight (3 embed_dim, embed_dim), or three,
    q_proj_weight, k_proj_weight, v_proj_weight, and their biases one vector, in_proj_bias.
    """
    names = ("q_proj", "k_proj", "v_proj")
    for kind in ("weight", "bias"):
        packed = state.get(f"{prefix}in_proj_{kind}")
        if packed is not None:
            del state[f"{prefix}in_proj_{kind}"]
            # A matrix of another size is cut in three all the same; load_state_dict then says
            # which projection it does not fit.
            for name, part in zip(names, packed.tensor_split(3), strict=True):
                state[f"{prefix}{name}.{kind}"] = part
    for name in names:
        separate = state.pop(f"{prefix}{name}_weight", None)
        if separate is not None:
            state[f"{prefix}{name}.weight"] = separate


def _move_fixed_slopes(module: "MultiheadAttention", *_: Any) -> None:
    """After load_state_dict(assign=True), which may have brought another device or dtype."""
    slopes, weight = module.slopes, module.q_proj.weight
    if module.alibi != "fixed" or slopes is None or not isinstance(weight, Tensor):
        return
    moved = (slopes.dtype, slopes.device) != (weight.dtype, weight.device)
    if moved and weight.is_floating_point():
        module.slopes = alibi_slopes(module.num_heads, dtype=weight.dtype, device=weight.device)
