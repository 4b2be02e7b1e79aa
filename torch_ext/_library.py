"""Loads the operators: registers `torch.ops.torch_ext.*` from the library beside this file."""

import importlib
from pathlib import Path

import torch

_LIBRARY = Path(__file__).with_name("libtorch_ext.so")


def load() -> None:
    """Loads libtorch_ext.so, once per process.

    Raises:
        ImportError: the library is missing, was built for another torch release, or cannot be
            loaded. The message says what to do.
    """
    if not _LIBRARY.exists():
        raise ImportError(
            f"torch_ext: expected the operator library at {_LIBRARY}, but it is missing; "
            "run `make build` in the source tree"
        )
    _check_torch_version()
    try:
        torch.ops.load_library(str(_LIBRARY))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"torch_ext: {_LIBRARY} could not be loaded; run `make build` to build it for "
            f"torch {torch.__version__}: {error}"
        ) from error


def _check_torch_version() -> None:
    # torch promises no stable C++ ABI from one minor release to the next: without this check a
    # wrong pair fails with an undefined symbol at best.
    try:
        built_for: str = importlib.import_module("torch_ext._built_for").TORCH_VERSION
    except ModuleNotFoundError:  # written by the build; a library built by hand goes without
        return
    if _release(built_for) != _release(torch.__version__):
        raise ImportError(
            f"torch_ext: this build is for torch {_release(built_for)}, but torch "
            f"{torch.__version__} is installed; run `make build` to build it for that one"
        )


def _release(version: str) -> str:
    """Major and minor number: "2.13.0+cpu" -> "2.13"."""
    return ".".join(version.split("+")[0].split(".")[:2])
