"""Memory beyond inputs and results grows with the lengths, not with their product. Measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MIB = 2**20

MEASURE = '''
import json, sys
import torch, torch_ext
torch.set_num_threads(2)

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field))

def high_water(function):
    """Bytes by which the process grew above what it held, at the worst moment."""
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before = status("VmRSS")
    result = function()
    return result, status("VmHWM") - before

options = json.loads(sys.argv[1])
ops = torch.ops.torch_ext
n, heads, size = options["length"], options["heads"], options["head_size"]
dtype = getattr(torch, options["dtype"])

def random(*shape):
    return torch.randn(*shape).to(dtype)

leaves = {x: random(1, heads, n, size) for x in ("query", "key", "value")}
leaves |= dict.fromkeys(("bias", "slopes", "sink"))
rules = {"is_causal": options["causal"]}
if options["all_options"]:
    leaves |= {"bias": random(n), "slopes": random(heads) / n, "sink": random(1, heads)}
    rules |= {"mask": torch.rand(n) < 0.9, "dropout_p": 0.1, "seed": torch.tensor([3])}
    rules |= {"window_left": n // 2, "softcap": 30.0, "bottom_right": True}

def run(leaves, measured):
    """Bytes beyond inputs and results at the worst moment of each operator."""
    tensors = [leaves[x] for x in ("query", "key", "value")]
    kwargs = rules | {x: leaves[x] for x in ("bias", "slopes", "sink")}
    direction = [None if x is None else torch.randn_like(x) for x in leaves.values()]
    go, gl = torch.randn_like(tensors[0]), torch.randn(tensors[0].shape[:-1])
    extra = {}

    def call(name, function, *args):
        results, most = high_water(lambda: function(*args, **kwargs)) if measured else (
            function(*args, **kwargs), 0)
        kept = sum(t.numel() * t.element_size() for t in results if t is not None)
        extra[name] = most - kept
        return results

    saved = *tensors, *call("forward", ops.attention_forward, *tensors)
    call("backward", ops.attention_backward, go, gl, *saved)
    call("tangent", ops.attention_tangent, *direction, *saved)
    call("second_order", ops.attention_second_order, go, gl, *direction, *saved)
    return extra

# Code and thread stacks are there before anything is measured.
small = {x: y if y is None or y.dim() < 4 else y[..., :70, :] for x, y in leaves.items()}
bias, mask = leaves["bias"], rules.get("mask")
if bias is not None:
    small["bias"], rules["mask"] = bias[:70], mask[:70]
run(small, False)
rules["mask"] = mask
print(json.dumps(run(leaves, True)))
'''


def measure(**options: object) -> dict[str, int]:
    """Bytes beyond inputs and results at the worst moment of each operator."""
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


pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' high-water mark"
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_at_8192_is_linear(dtype: str) -> None:
    """One head's scores alone would take 256 MiB in float32."""
    extra = measure(length=8192, heads=1, head_size=32, dtype=dtype, causal=False, all_options=True)
    bounds = {"forward": 32, "backward": 64, "tangent": 32, "second_order": 64}
    for name, bound in bounds.items():
        assert extra[name] < bound * MIB, (name, extra)


def test_memory_does_not_grow_with_the_product_of_the_lengths() -> None:
    """Four times the length may take some four times the memory, never sixteen."""
    short, long = (
        measure(length=n, heads=2, head_size=64, dtype="float32", causal=True, all_options=False)
        for n in (1024, 4096)
    )
    for name in short:
        assert long[name] < 4 * max(short[name], 0) + 16 * MIB, (name, short, long)


HUGE_PAGES = """
import torch, torch_ext
query = torch.randn(1, 1, 1, 8)
key = torch.randn(1, 1, 1 << 19, 8)  # 16 MiB, and so is its gradient
output, *statistics = torch.ops.torch_ext.attention_forward(query, key, key)
grads = torch.ops.torch_ext.attention_backward(
    torch.ones_like(output), None, query, key, key, output, *statistics
)
address, found = grads[1].data_ptr() + grads[1].nbytes // 2, 0
with open("/proc/self/smaps") as lines:
    for line in lines:
        first = line.split()[0]
        if "-" in first:
            begin, end = (int(x, 16) for x in first.split("-"))
        elif first == "AnonHugePages:" and begin <= address < end:
            found = int(line.split()[1]) * 1024
print(found)
"""


def _huge_pages_are_possible() -> bool:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as mode:
            return "[never]" not in mode.read()
    except OSError:
        return False


@pytest.mark.skipif(not _huge_pages_are_possible(), reason="needs transparent huge pages")
def test_large_results_lie_in_huge_pages() -> None:
    run = subprocess.run(
        [sys.executable, "-c", HUGE_PAGES],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(x for x in sys.path if x)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 8 * MIB
