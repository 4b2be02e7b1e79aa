"""The library beside this file. Importing this module loads it and registers its operators."""

import importlib
from pathlib import Path

import torch

_LIBRARY = Path(__file__).with_name("libtorch_ext.so")
_REMEDY = (
    "run `make build` in the source tree, or, where `pip install` built it, "
    "`pip install --force-reinstall --no-deps --no-build-isolation <source tree>`"
)


def load() -> None:
    """Loads libtorch_ext.so, once per process.

    Raises:
        ImportError: the library is missing, was built for another torch release, or cannot be
            loaded. The message says what to do.
    """
    if not _LIBRARY.exists():
        raise ImportError(
            f"torch_ext: expected the operator library at {_LIBRARY}, but it is missing; {_REMEDY}"
        )
    _check_torch_version()
    try:
        torch.ops.load_library(str(_LIBRARY))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"torch_ext: {_LIBRARY}{_built_for()} could not be loaded; to build it for torch "
            f"{torch.__version__} {_REMEDY}: {error}"
        ) from error


def cpu_implementation() -> str:
    """Which kernels serve CPU tensors: "avx512_bf16", "avx512", "avx2" or "reference".

    The best that the processor can run, or the one that the environment variable TORCH_EXT_ISA
    names. "reference" is plain loops, written to be read: right, and slow.

    Raises:
        RuntimeError: TORCH_EXT_ISA names none that this processor can run.
    """
    name: str = torch.ops.torch_ext.cpu_implementation()
    return name


def cuda_architectures() -> tuple[str, ...]:
    """Which GPUs this build has CUDA kernels for, as in ("sm_80", "sm_90a"); () where it has none.

    It has some where nvcc was found when it was built. GPUs that are newer than the newest
    architecture without a letter run what was compiled for that one.
    """
    return tuple(torch.ops.torch_ext.cuda_architectures())


def _check_torch_version() -> None:
    # torch promises no stable C++ ABI from one minor release to the next: without this check a
    # wrong pair fails with an undefined symbol at best.
    built_for = _build().get("TORCH_VERSION")
    if built_for and _release(built_for) != _release(torch.__version__):
        raise ImportError(
            f"torch_ext: this build is for torch {_release(built_for)}, but torch "
            f"{torch.__version__} is installed; {_REMEDY}"
        )


def _built_for() -> str:
    """For messages: ", built for torch 2.13.0 and CUDA 13.0 (sm_80 sm_90a),"."""
    build = _build()
    if not build:
        return ""
    text = f", built for torch {build['TORCH_VERSION']}"
    if build.get("CUDA_VERSION"):
        text += f" and CUDA {build['CUDA_VERSION']} ({build['CUDA_ARCHITECTURES']})"
    return text + ","


def _build() -> dict[str, str]:
    """What the build wrote down beside the library; one built by hand goes without."""
    try:
        module = importlib.import_module("torch_ext._built_for")
    except ModuleNotFoundError:
        return {}
    return {name: value for name, value in vars(module).items() if name.isupper()}


def _release(version: str) -> str:
    """Major and minor number: "2.13.0+cpu" -> "2.13"."""
    return ".".join(version.split("+")[0].split(".")[:2])


load()
operators = torch.ops.torch_ext
