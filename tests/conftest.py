"""Settings that every test shares: poisoned scratch memory, fixed seed, two threads, devices."""

from __future__ import annotations

import importlib
import os
import sys

# Before the library is loaded: scratch memory of the kernels is filled with NaN, so that a value
# that was never written cannot pass for a result.
os.environ["TORCH_EXT_POISON"] = "1"
# Waiting threads sleep: beside other programs, spinning ones make every test many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import torch_ext

# What results are compared with is PyTorch at its best.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

THREADS = 2
DEVICES = ["cpu"]
if torch_ext.cuda_architectures() and torch.cuda.is_available():
    DEVICES.append("cuda")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "isa: also run at each instruction set level, see test_isa.py"
    )


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that this machine has and this build has kernels for."""
    return torch.device(request.param)


@pytest.fixture
def on_device(device: torch.device) -> Iterator[None]:
    """What is made without naming a device, modules too, is made on this one.

    Not for tests that compare with the oracle, which lives on the CPU.
    """
    with torch.device(device):
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(20250131)


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Compiles from nothing, and leaves nothing compiled behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of an example, "folder/module", found as when a script of that folder runs."""
    folder, name = request.param.split("/")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module
