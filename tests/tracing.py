"""What the tests of the registry and of the compilers share: a model, and silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def quiet(function: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(8, 24)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
        q, k, v = self.projection(x).chunk(3, -1)
        return torch.ops.torch_ext.attention(q, k, v, mask=mask, is_causal=True, scale=scale)
