"""Public names, and what an import says without a library that fits."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_ext
from torch_ext import _library

on_device = pytest.mark.usefixtures("on_device")


def test_public_names() -> None:
    for name in torch_ext.__all__:
        assert hasattr(torch_ext, name), name
        if callable(getattr(torch_ext, name)) and name != "cuda_architectures":
            assert "Raises:" in getattr(torch_ext, name).__doc__
    assert torch_ext.__version__.count(".") == 2


REMEDY = "run `make build` in the source tree, or, .*`pip install --force-reinstall"


def test_missing_library_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_library, "_LIBRARY", tmp_path / "libtorch_ext.so")
    with pytest.raises(ImportError, match=rf"missing.*{REMEDY}"):
        _library.load()


def test_damaged_library_is_an_import_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libtorch_ext.so").write_bytes(b"not a library")
    monkeypatch.setattr(_library, "_LIBRARY", tmp_path / "libtorch_ext.so")
    build = rf"built for torch {re.escape(torch.__version__.split('+')[0])}.*could not be loaded"
    with pytest.raises(ImportError, match=rf"{build}.*{REMEDY}"):
        _library.load()


def test_library_for_another_torch_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "torch_ext"
    without_build = shutil.ignore_patterns("*.so", "_built_for.py", "__pycache__")
    shutil.copytree(Path(torch_ext.__file__).parent, package, ignore=without_build)
    (package / "libtorch_ext.so").write_bytes(b"never opened")
    (package / "_built_for.py").write_text('TORCH_VERSION = "1.4.0+cpu"\n')
    done = subprocess.run(
        [sys.executable, "-c", "import torch_ext"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "ImportError: torch_ext: this build is for torch 1.4, but torch " in done.stderr
    assert re.search(REMEDY, done.stderr), done.stderr
