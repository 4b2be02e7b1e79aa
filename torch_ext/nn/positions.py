"""Positional encodings: sinusoidal, added to vectors, and rotary, which turns them."""

import sys

import torch
from torch import Tensor, nn

from torch_ext._checks import BOOL, INTEGER, NUMBER, TENSOR_OR_NONE, check_type, is_scripting
from torch_ext.nn._checks import check_input


class SinusoidalPositionalEncoding(nn.Module):
    """Adds to the vector at position p: sin(p w_i) in place 2i and cos(p w_i) in place 2i + 1.

    w_i = 10000^(-2i / embed_dim), in radians per position. There is nothing to learn or to store,
    and no largest position.

    Args:
        embed_dim: size of the vectors, even.

    Raises:
        TypeError: embed_dim is not an integer.
        ValueError: embed_dim is not positive and even.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        _check_even("SinusoidalPositionalEncoding", "embed_dim", embed_dim)
        self.embed_dim = embed_dim

    def forward(self, x: Tensor, positions: Tensor | None = None, offset: int = 0) -> Tensor:
        """Returns x plus the encoding of its positions.

        Args:
            x: (..., N, embed_dim).
            positions: broadcastable to (..., N); 0, 1, ..., N - 1 by default.
            offset: added to every position, for example the number of vectors already seen.

        Returns:
            (..., N, embed_dim) in x's dtype.

        Raises:
            RuntimeError: x is not floating point or not (..., N, embed_dim), or positions do not
                broadcast to (..., N) or are no real numbers on x's device.
            TypeError: an argument is of another type than the above.
            ValueError: offset is beyond 2^53, where float64 no longer holds every integer.
        """
        check_input("SinusoidalPositionalEncoding", "x", x, "embed_dim", self.embed_dim)
        _check_positions("SinusoidalPositionalEncoding", x, positions, offset)
        angles = _angles(x, self.embed_dim, 10000.0, positions, offset)
        encoding = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
        return x + encoding.to(x.dtype)

    def extra_repr(self) -> str:
        """What print shows between the parentheses."""
        return f"{self.embed_dim}"


class RotaryEmbedding(nn.Module):
    """Turns pair i of the vector at position p by the angle p w_i, w_i = base^(-2i / head_size).

    Applied to queries and keys it makes their products depend on the difference of positions only;
    it keeps the length of every vector. Nothing to learn or to store, no largest position.

    Args:
        head_size: size D of the vectors, even.
        base: sets the slowest turn, base^(-(D - 2) / D) radians per position.
        interleaved: which numbers form pair i. True: (2i, 2i + 1), as in the paper. False:
            (i, i + D/2), as in GPT-NeoX and in Hugging Face's Llama checkpoints.

    Raises:
        TypeError: head_size is not an integer, base no number or interleaved no bool.
        ValueError: head_size is not positive and even, or base not positive and finite.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding",
        equations 15 and 34.
    """

    def __init__(self, head_size: int, *, base: float = 10000.0, interleaved: bool = True) -> None:
        super().__init__()
        _check_even("RotaryEmbedding", "head_size", head_size)
        check_type("RotaryEmbedding", NUMBER, "base", base)
        check_type("RotaryEmbedding", BOOL, "interleaved", interleaved)
        if not 0.0 < base <= sys.float_info.max:
            raise ValueError(
                f"RotaryEmbedding: expected base to be positive and finite, but got {base}"
            )
        self.head_size = head_size
        self.base = float(base)
        self.interleaved = interleaved

    def forward(self, x: Tensor, positions: Tensor | None = None, offset: int = 0) -> Tensor:
        """Returns x, turned.

        Args:
            x: (..., N, head_size), for example queries or keys (B, H, N, head_size).
            positions: broadcastable to (..., N); 0, 1, ..., N - 1 by default. Position ids of
                heads (B, H, N, head_size) are (B, 1, N).
            offset: added to every position: while decoding, the number of keys already cached.

        Returns:
            (..., N, head_size) in x's dtype and x's order of dimensions in memory. 16-bit inputs
            are turned in float32.

        Raises:
            RuntimeError: x is not floating point or not (..., N, head_size), or positions do not
                broadcast to (..., N) or are no real numbers on x's device.
            TypeError: an argument is of another type than the above.
            ValueError: offset is beyond 2^53, where float64 no longer holds every integer.
        """
        check_input("RotaryEmbedding", "x", x, "head_size", self.head_size)
        _check_positions("RotaryEmbedding", x, positions, offset)
        angles = _angles(x, self.head_size, self.base, positions, offset)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        if self.interleaved and (is_scripting() or not torch.compiler.is_compiling()):
            # Fewer passes over memory than below.
            first, second = _pairs(x.to(dtype)).unbind(-1)
            turned = torch.complex(first, second) * torch.complex(cos, sin)
            return torch.view_as_real(turned).flatten(-2).to(x.dtype)
        if self.interleaved:  # torch.compile makes no code for complex numbers
            cos = cos.repeat_interleave(2, dim=-1)
            sin = torch.stack((-sin, sin), dim=-1).flatten(-2)
            first, second = _pairs(x).unbind(-1)
            swapped = torch.stack((second, first), dim=-1).flatten(-2)
        else:
            cos = torch.cat((cos, cos), dim=-1)
            sin = torch.cat((-sin, sin), dim=-1)
            swapped = x.roll(self.head_size // 2, -1)
        return (x * cos + swapped * sin).to(x.dtype)

    def extra_repr(self) -> str:
        """What print shows between the parentheses."""
        return f"{self.head_size}, base={self.base}, interleaved={self.interleaved}"


def _pairs(x: Tensor) -> Tensor:
    """(..., D) -> (..., D / 2, 2), a view: pair i is (2i, 2i + 1)."""
    pairs: Tensor = x.unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
    return pairs


def _angles(x: Tensor, size: int, base: float, positions: Tensor | None, offset: int) -> Tensor:
    """Angles p base^(-2i / size) of the rows of x at positions p: (..., N, size / 2), in radians.

    float64, since in float32 an angle of 100 000 radians is known to 0.008 only.
    """
    if positions is None:
        positions = torch.arange(x.size(-2), device=x.device)
    i = torch.arange(size // 2, device=x.device, dtype=torch.float64)
    frequencies = torch.pow(base, i * (-2.0 / size))
    return (positions.to(torch.float64) + offset).unsqueeze(-1) * frequencies


def _check_positions(module: str, x: Tensor, positions: Tensor | None, offset: int) -> None:
    if not is_scripting():
        check_type(module, TENSOR_OR_NONE, "positions", positions)
        check_type(module, NUMBER, "offset", offset)
        is_known = not torch.compiler.is_compiling() and not isinstance(offset, Tensor)
        if is_known and not abs(offset) <= 2**53:
            raise ValueError(
                f"{module}: expected offset to be at most 2^53 in magnitude, but got {offset}"
            )
    if positions is None:
        return
    if positions.is_complex() or positions.dtype == torch.bool or positions.device != x.device:
        raise RuntimeError(
            f"{module}: expected positions to be real numbers on {x.device}, "
            f"but got dtype {positions.dtype} on {positions.device}"
        )
    fits = positions.dim() < x.dim()
    if fits:
        for i in range(positions.dim()):
            size = positions.size(-1 - i)
            fits = fits and (size == 1 or size == x.size(-2 - i))
    if not fits:
        raise RuntimeError(
            f"{module}: expected positions to broadcast to {list(x.shape[:-1])}, "
            f"but got shape {list(positions.shape)}"
        )


def _check_even(module: str, name: str, size: int) -> None:
    check_type(module, INTEGER, name, size)
    if size <= 0 or size % 2 != 0:
        raise ValueError(f"{module}: expected {name} to be positive and even, but got {size}")
