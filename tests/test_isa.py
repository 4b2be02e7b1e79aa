"""The same tests at every instruction set level that the processor has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

WHICH = "import torch_ext; print(torch_ext.cpu_implementation())"

ABOUT_CPU = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}
LEVELS = ["reference", *ABOUT_CPU.get(torch.backends.cpu.get_cpu_capability(), [])]
if LEVELS[-1] == "avx512" and torch.cpu.get_capabilities()["avx512_bf16"]:
    LEVELS.append("avx512_bf16")


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize("level", LEVELS[:-1])  # the tests themselves run at the last
def test_level_passes_the_tests_marked_for_it(level: str) -> None:
    names = ["grid", "second_order", "options", "dropout", "masks", "numerics", "edges"]
    if level != "reference":  # which knows no threads, and is slow
        names.append("determinism")
    tests = [str(Path(__file__).parent / f"test_{name}.py") for name in names]
    result = run(
        [
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "-m",
            "isa",
            "-k",
            "not cuda",
            "-p",
            "no:cacheprovider",
            *tests,
        ],
        TORCH_EXT_ISA=level,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_chosen(level: str) -> None:
    assert run(["-c", WHICH], TORCH_EXT_ISA=level).stdout.strip() == level


def test_the_best_level_is_the_default() -> None:
    assert run(["-c", WHICH], TORCH_EXT_ISA="").stdout.strip() == LEVELS[-1]


def test_an_unknown_level_is_refused() -> None:
    result = run(["-c", WHICH], TORCH_EXT_ISA="sse9")
    assert result.returncode == 1, result.returncode  # an exception, not a signal
    assert "TORCH_EXT_ISA" in result.stderr and "sse9" in result.stderr


def test_kernel_objects_define_no_weak_symbols() -> None:
    """The linker keeps one of several weak definitions: one for AVX-512 could run everywhere."""
    objects = sorted(x for x in ROOT.glob("build/**/*.o") if "kernels_avx" in str(x.parent))
    if not objects:
        pytest.skip("no build tree, only an installed library")
    for path in objects:
        symbols = subprocess.run(
            ["nm", "--defined-only", "-C", str(path)], capture_output=True, text=True, check=True
        )
        # DW.ref.… is a pointer that unwinding needs, no code.
        lines = (line for line in symbols.stdout.splitlines() if " DW.ref." not in line)
        weak = [line for line in lines if line.split(None, 2)[1] in "WwVvu"]
        assert not weak, f"{path}: {weak[:5]}"
