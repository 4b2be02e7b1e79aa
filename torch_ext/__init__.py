"""Scaled dot-product attention as operators of the Torch registry, with all their derivatives.

Importing this package loads the C++ library and registers `torch.ops.torch_ext.*`. The functions
here are thin: they name, document and type those operators, and work the same in eager mode, under
`torch.compile(fullgraph=True)` and in `torch.jit.script`.

Example:
    >>> import torch, torch_ext
    >>> query, key, value = (torch.randn(2, 8, 128, 64, requires_grad=True) for _ in range(3))
    >>> output = torch_ext.attention(query, key, value, is_causal=True)
    >>> output.sum().backward()
"""

from torch_ext import nn
from torch_ext._library import cpu_implementation, cuda_architectures
from torch_ext.functional import alibi_slopes, attention, attention_with_logsumexp
from torch_ext.inspection import attention_weights, plot_attention
from torch_ext.sdpa import scaled_dot_product_attention

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "alibi_slopes",
    "attention",
    "attention_weights",
    "attention_with_logsumexp",
    "cpu_implementation",
    "cuda_architectures",
    "nn",
    "plot_attention",
    "scaled_dot_product_attention",
]
