"""Memory beyond inputs and results grows with the lengths, not with their product. Measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MIB = 2**20

MEASURE = """
import json, sys
import torch, torch_ext
torch.set_num_threads(2)

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field))

def high_water(function):
    '''Bytes by which the process grew above what it held, at the worst moment.'''
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = status("VmRSS")
    result = function()
    return result, status("VmHWM") - before

options = json.loads(sys.argv[1])
n, heads, size = options["length"], options["heads"], options["head_size"]
dtype = getattr(torch, options["dtype"])
op = torch.ops.torch_ext.attention_forward
lead = (1, heads, n)
q, k, v = (torch.randn(*lead, size).to(dtype).requires_grad_() for _ in range(3))
go = torch.randn(*lead, size).to(dtype)
kwargs = {"is_causal": options["causal"]}
leaves = [q, k, v]
if options["bias"]:
    kwargs["bias"] = torch.randn(n, dtype=dtype).requires_grad_()
    leaves.append(kwargs["bias"])
if options["mask"]:
    kwargs["mask"] = torch.rand(n) < 0.9

def warm(t):  # code and thread stacks are there before anything is measured
    return t.detach()[..., :70, :].requires_grad_()

small = op(warm(q), warm(k), warm(v), is_causal=True)
torch.autograd.grad(small[0].sum() + small[1].sum(), q, allow_unused=True)
a = [warm(x) for x in (q, k, v)]
torch.autograd.grad(op(*a)[0].sum(), a)

out, forward = high_water(lambda: op(q, k, v, **kwargs))
cotangents = (go, torch.ones_like(out[1]))
grads, backward = high_water(lambda: torch.autograd.grad(out[:2], leaves, cotangents))
def size_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)
print(json.dumps({"forward": forward - size_of(out), "backward": backward - size_of(grads)}))
"""


def measure(**options: object) -> dict[str, int]:
    """Bytes beyond inputs and results at the worst moment of the forward and of the backward."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(x for x in sys.path if x),
        "TORCH_EXT_POISON": "0",
    }
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(options)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' high-water mark"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_at_8192_is_linear(dtype: str) -> None:
    """One head's scores alone would take 256 MiB in float32."""
    extra = measure(
        length=8192, heads=1, head_size=32, dtype=dtype, causal=False, bias=True, mask=True
    )
    assert extra["forward"] < 32 * MIB, extra
    assert extra["backward"] < 64 * MIB, extra


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' high-water mark"
)
def test_memory_does_not_grow_with_the_product_of_the_lengths() -> None:
    """Four times the length may take some four times the memory, never sixteen."""
    short, long = (
        measure(
            length=n, heads=2, head_size=64, dtype="float32", causal=True, bias=False, mask=False
        )
        for n in (1024, 4096)
    )
    for part in ("forward", "backward"):
        assert long[part] < 4 * max(short[part], 0) + 16 * MIB, (part, short, long)
