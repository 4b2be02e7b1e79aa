"""Drives CMake, the only description of the build, and puts what it makes into the wheel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The package's own, which is written down there and nowhere else."""
    text = (ROOT / "torch_ext" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)[1]


def torch_release() -> str:
    """Returns "2.13" where this Python has torch 2.13.0, or an empty string."""
    command = [sys.executable, str(ROOT / "cmake" / "torch_info.py")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return ""  # a source distribution needs none; a build gets the error from CMake
    version = next(line for line in answer.stdout.splitlines() if line.startswith("version="))
    return ".".join(version.removeprefix("version=").split(".")[:2])


class CMakeBuild(build_ext):
    """Builds the target torch_ext in a build tree of its own."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's name holds no Python version: nothing in it depends on Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Configures and builds, straight into the package that becomes the wheel."""
        cmake = shutil.which("cmake")
        if cmake is None:
            sys.exit("torch_ext is built by CMake, which is not installed: pip install cmake ninja")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        tree = Path(self.build_temp).resolve() / "cmake"
        # --fresh: the tools of an earlier isolated build are gone, its object files still serve.
        configure = [cmake, "--fresh", "-S", str(ROOT), "-B", str(tree)]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-DTORCH_EXT_OUTPUT_DIR={target.parent}"]
        for name in ("TORCH_EXT_CUDA", "TORCH_EXT_CUDA_ARCHITECTURES"):
            if name in os.environ:
                configure += [f"-D{name}={os.environ[name]}"]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        build = [cmake, "--build", str(tree), "--target", "torch_ext", "--parallel", jobs]
        for command in (configure, build):
            if subprocess.run(command, check=False).returncode != 0:
                sys.exit("torch_ext: the build failed; the reason is printed above")


class TorchWheel(bdist_wheel):
    """Tags the wheel for this platform and any Python: it is tied to torch, as its version says."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the tag's Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


release = torch_release()
setup(
    version=f"{version()}+torch{release}" if release else version(),
    # Always satisfied by the torch that this build found, so that nothing is downloaded.
    install_requires=[f"torch=={release}.*"] if release else [],
    ext_modules=[Extension("torch_ext.libtorch_ext", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": TorchWheel},
)
