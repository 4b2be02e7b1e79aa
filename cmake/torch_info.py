"""Prints, as `key=value` lines, what a build needs to know about the torch of this Python.

Inside an isolated pip build torch is hidden by PYTHONPATH; a second try that ignores the
environment variables finds the torch of the environment that pip installs into.
"""

import glob
import os
import sys


def openmp_runtime(torch_lib: str) -> str:
    """Returns the OpenMP library that the torch wheel carries, or an empty string."""
    folders = (torch_lib, os.path.join(torch_lib, "..", "..", "torch.libs"))
    found = [path for folder in folders for path in sorted(glob.glob(f"{folder}/libgomp*.so*"))]
    return os.path.realpath(found[0]) if found else ""


def main() -> None:
    """Prints the lines, or ends with an error that says what to install."""
    try:
        import torch
    except ModuleNotFoundError:
        if not sys.flags.ignore_environment:
            os.execv(sys.executable, [sys.executable, "-E", os.path.abspath(__file__)])
        sys.exit(
            "torch_ext is built against the torch that is installed, and this Python has none:\n"
            f"  {sys.executable}\n"
            "Install torch there and build without isolation:\n"
            "  pip install torch setuptools cmake ninja\n"
            "  pip install --no-build-isolation ."
        )
    package = os.path.dirname(torch.__file__)
    print("version=" + torch.__version__)
    print(f"include={package}/include;{package}/include/torch/csrc/api/include")
    print(f"lib={package}/lib")
    print(f"cxx11_abi={int(torch.compiled_with_cxx11_abi())}")
    print("openmp=" + openmp_runtime(f"{package}/lib"))


if __name__ == "__main__":
    main()
