"""What the tests of the Python functions share."""

import torch
from torch import Tensor

import torch_ext

sdpa = torch.nn.functional.scaled_dot_product_attention
ours = torch_ext.scaled_dot_product_attention

NEAR = {"rtol": 1e-9, "atol": 1e-10}  # float64 throughout: only the order of sums differs


def qkv(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, grad: bool = False
) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in shapes]


def random_mask(*shape: int) -> Tensor:
    """Random, with a first row that sees everything and a second one that sees nothing."""
    mask = torch.rand(shape) > 0.4
    mask[..., 0, :] = True
    mask[..., 1, :] = False
    return mask
