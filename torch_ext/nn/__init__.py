"""Attention as modules: learned projections and positional encodings.

Every module works in eager mode, under `torch.compile(fullgraph=True)` and in `torch.jit.script`.
"""

from torch_ext.nn.multihead import MultiheadAttention
from torch_ext.nn.positions import RotaryEmbedding, SinusoidalPositionalEncoding

__all__ = ["MultiheadAttention", "RotaryEmbedding", "SinusoidalPositionalEncoding"]
