"""What the modules ask of their inputs, compiled by TorchScript with them, and of their options."""

import torch
from torch import Tensor, nn

from torch_ext._checks import (
    INTEGER,
    INTEGER_OR_NONE,
    NUMBER,
    NUMBER_OR_NONE,
    TENSOR,
    check_type,
    check_types,
    described,
    is_scripting,
)


def check_input(module: str, name: str, x: Tensor, size_name: str, size: int) -> None:
    """Raises a TypeError unless x is a tensor, a RuntimeError unless floating and (..., N, size).

    Broadcasting would make a plausible result of a vector of another size, and of integers too.
    """
    if not is_scripting():
        check_type(module, TENSOR, name, x)
    if x.is_nested:  # its shape cannot be asked for
        raise RuntimeError(f"{module}: expected {name} to be strided, but got a nested tensor")
    if x.dim() < 2 or x.size(-1) != size or not x.is_floating_point():
        raise RuntimeError(
            f"{module}: expected {name} to be floating point and of shape (..., N, {size_name}), "
            f"{size_name} = {size}, but got dtype {x.dtype} and shape {list(x.shape)}"
        )


def project(module: str, name: str, x: Tensor, layer: nn.Module) -> Tensor:
    """layer(x); where it cannot take x for its dtype or device the error names x.

    Told apart only afterwards: autocast, or a hook of the layer, may bring the two together.
    """
    try:
        projected: Tensor = layer(x)
    except RuntimeError as error:
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or (weight.dtype, weight.device) == (x.dtype, x.device):
            raise
        raise RuntimeError(
            f"{module}: expected {name} to be {weight.dtype} on {weight.device} like the weight "
            f"that multiplies it, but got {x.dtype} on {x.device}: {error}"
        ) from error
    return projected


def check_masks(key: Tensor, key_mask: Tensor, mask: Tensor | None) -> None:
    """Both are bool, and broadcast with each other; the operator knows with what else they do."""
    if (
        key_mask.dtype != torch.bool
        or key_mask.shape != key.shape[:-1]
        or key_mask.device != key.device
    ):
        raise RuntimeError(
            f"MultiheadAttention: expected key_mask to be bool {list(key.shape[:-1])} on "
            f"{key.device} (True = attend), but got {key_mask.dtype} {list(key_mask.shape)} on "
            f"{key_mask.device}"
        )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise RuntimeError(
            f"MultiheadAttention: expected mask to be bool (True = attend; additive masks "
            f"are called bias), but got {mask.dtype}"
        )
    fits = mask.device == key_mask.device
    for i in range(mask.dim()):  # from the last: M, N, H, batch dimensions
        of_keys = key.size(-2) if i == 0 else 1
        if i > 2 and i - 2 < key_mask.dim():
            of_keys = key_mask.size(1 - i)
        fits = fits and (mask.size(-1 - i) == of_keys or mask.size(-1 - i) == 1 or of_keys == 1)
    if not fits:
        raise RuntimeError(
            f"MultiheadAttention: expected mask to be broadcastable to (..., H, N, M) and to go "
            f"with key_mask of shape {list(key_mask.shape)} on {key_mask.device}, but got mask of "
            f"shape {list(mask.shape)} on {mask.device}"
        )


def _expect(name: str, value: object, possible: bool, expected: str) -> None:
    if not possible:
        raise ValueError(f"MultiheadAttention: expected {name} to be {expected}, but got {value!r}")


def check_sizes(embed_dim: int, num_heads: int, num_kv_heads: int, kdim: int, vdim: int) -> None:
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    check_types("MultiheadAttention", INTEGER, **sizes, kdim=kdim, vdim=vdim)
    _check_divides("num_heads", num_heads, "embed_dim", embed_dim)
    _check_divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
    _expect("kdim", kdim, kdim > 0, "at least 1")
    _expect("vdim", vdim, vdim > 0, "at least 1")


def check_options(
    dropout: float,
    window_left: int | None,
    window_right: int | None,
    scale: float | None,
    softcap: float | None,
    alibi: str | None,
    dtype: torch.dtype | None,
) -> None:
    check_types("MultiheadAttention", NUMBER, dropout=dropout)
    _expect("dropout", dropout, 0.0 <= dropout < 1.0, "at least 0 and below 1")
    for name, extent in (("window_left", window_left), ("window_right", window_right)):
        check_type("MultiheadAttention", INTEGER_OR_NONE, name, extent)
        _expect(name, extent, extent is None or extent >= 0, "at least 0, or None")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    known = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    _expect("dtype", dtype, dtype in known, "float64, float32, bfloat16 or float16, or None")
    sums = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    check_types("MultiheadAttention", NUMBER_OR_NONE, scale=scale, softcap=softcap)
    finite = scale is None or abs(scale) <= sums.max
    _expect("scale", scale, finite, f"finite in {sums.dtype}, or None")
    positive = softcap is None or sums.tiny <= softcap <= sums.max
    _expect("softcap", softcap, positive, f"positive and finite in {sums.dtype}, or None")
    _expect("alibi", alibi, alibi in ("fixed", "learned", None), '"fixed", "learned" or None')


def check_rotary(rotary: object, head_size: int) -> None:
    if rotary is None:
        return
    if not isinstance(rotary, nn.Module) or not hasattr(rotary, "head_size"):
        raise TypeError(
            "MultiheadAttention: expected rotary to be a RotaryEmbedding or None, but got "
            f"{described(rotary)}"
        )
    if rotary.head_size != head_size:
        raise ValueError(
            f"MultiheadAttention: expected rotary to have head size {head_size} "
            f"(embed_dim / num_heads), but got {rotary.head_size}"
        )


def _check_divides(name: str, divisor: int, whole_name: str, whole: int) -> None:
    if divisor <= 0 or whole <= 0 or whole % divisor != 0:
        raise ValueError(
            f"MultiheadAttention: expected {name} to divide {whole_name} = {whole}, "
            f"but got {divisor}"
        )
