"""The same tests at every instruction set level that the processor has, and what sets the levels apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

# The hash of some results, and of their gradients.
DIGEST = """
import hashlib, torch, torch_ext
torch.manual_seed(1)
q, k, v = (torch.randn(2, 113, 64).requires_grad_() for _ in range(3))
output = torch.ops.torch_ext.attention(q, k, v, is_causal=True)
grads = torch.autograd.grad(output, (q, k, v), torch.randn(2, 113, 64))
print(hashlib.sha256(b"".join(x.detach().numpy().tobytes() for x in (output, *grads))).hexdigest())
"""

ABOUT_CPU = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}
LEVELS = ["reference", *ABOUT_CPU.get(torch.backends.cpu.get_cpu_capability(), [])]


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize("level", LEVELS)
def test_level_passes_the_tests_marked_for_it(level: str) -> None:
    tests = [
        str(Path(__file__).parent / f"test_{x}.py")
        for x in ("forward", "backward", "masks", "numerics", "determinism")
    ]
    result = run(
        ["-m", "pytest", "-q", "--tb=short", "-m", "isa", "-p", "no:cacheprovider", *tests],
        TORCH_EXT_ISA=level,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def test_levels_are_really_chosen() -> None:
    """The reference sums in float64: its last bits give it away. The default is the best level."""
    digests = {}
    for level in LEVELS:
        result = run(["-c", DIGEST], TORCH_EXT_ISA=level)
        assert result.returncode == 0, result.stderr
        digests[level] = result.stdout
    vectorised = [digest for level, digest in digests.items() if level != "reference"]
    assert digests["reference"] not in vectorised, digests
    best = run(["-c", DIGEST], TORCH_EXT_ISA="")
    assert best.stdout == digests[LEVELS[-1]], best.stderr


def test_an_unknown_level_is_refused() -> None:
    result = run(["-c", DIGEST], TORCH_EXT_ISA="sse9")
    assert result.returncode == 1, result.returncode  # an exception, not a signal
    assert "TORCH_EXT_ISA" in result.stderr and "sse9" in result.stderr


def test_kernel_objects_define_no_weak_symbols() -> None:
    """The linker keeps one of several weak definitions; one compiled for AVX-512 would then run everywhere."""
    objects = sorted(x for x in ROOT.glob("build/**/*.o") if "kernels_avx" in str(x.parent))
    if not objects:
        pytest.skip("no build tree, only an installed library")
    for path in objects:
        symbols = subprocess.run(
            ["nm", "--defined-only", "-C", str(path)], capture_output=True, text=True, check=True
        )
        weak = [line for line in symbols.stdout.splitlines() if line.split(None, 2)[1] in "WwVvu"]
        assert not weak, f"{path}: {weak[:5]}"
