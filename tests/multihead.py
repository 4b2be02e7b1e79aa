"""Modules of multi-head attention that the tests of torch_ext.nn share."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from torch_ext.nn import MultiheadAttention

NEAR = {"rtol": 1e-9, "atol": 1e-10}  # float64 throughout
F64 = torch.float64


def pair(**options: float) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """torch's module with random parameters, and ours with its state."""
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=F64, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = MultiheadAttention(12, 3, dtype=F64, **options)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    return theirs, ours


def assert_same_with_gradients(output: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    assert_close(output, expected, **NEAR)
    grad = torch.randn_like(expected)
    assert_close(
        torch.autograd.grad(output, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        **NEAR,
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"window_left": 2, "window_right": 1},
    "bottom_right": {"bottom_right": True},
    "scale": {"scale": 1.5},
    "softcap": {"softcap": 0.5},
    "fixed slopes": {"alibi": "fixed"},
    "learned slopes": {"alibi": "learned"},
    "sink": {"sink": True},
}
OPTIONS["everything"] = {
    name: value
    for options in OPTIONS.values()
    for name, value in options.items()
    if value != "fixed"
}
