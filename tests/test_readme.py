"""The README's Python snippets run as they stand."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

import pytest
import torch

import torch_ext

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)


def run(number: int, folder: Path) -> dict[str, object]:
    """What the snippet defines. It runs from a file, where TorchScript can find its source."""
    imports = SNIPPETS[0].splitlines()[0]  # which the README shows once
    path = folder / f"snippet_{number}.py"
    path.write_text(f"{imports}\n{SNIPPETS[number]}", encoding="utf-8")
    return runpy.run_path(str(path))


@pytest.mark.parametrize("number", range(max(len(SNIPPETS), 3)))
def test_snippet_runs(number: int, tmp_path: Path) -> None:
    run(number, tmp_path)


def test_self_attention_trains_and_scripts(tmp_path: Path) -> None:
    (number,) = (i for i, text in enumerate(SNIPPETS) if "class SelfAttention" in text)
    layer = run(number, tmp_path)["SelfAttention"](32, 4)
    x = torch.randn(2, 9, 32)
    layer(x).sum().backward()
    assert layer.qkv.weight.grad.abs().max() > 0
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


def test_all_that_is_exported_is_in_a_table() -> None:
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if "| `" in line]
    names = [name for name in torch_ext.__all__ if name not in ("nn", "__version__")]
    for name in [*names, *(f"nn.{name}" for name in torch_ext.nn.__all__)]:
        assert any(f"`{name}`" in row.split(" | ")[0] for row in rows), name


def test_every_option_is_in_the_table() -> None:
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if "| `" in line]
    names = list(inspect.signature(torch_ext.attention).parameters)
    for name in names[names.index("mask") :]:
        assert any(f"`{name}`" in row.split(" | ")[0] for row in rows), name
