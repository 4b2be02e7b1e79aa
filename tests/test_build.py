"""The last step of a build: the library goes where Python looks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "cmake" / "place.cmake"


def place(file: Path, folder: Path) -> None:
    """As CMakeLists.txt does after every build."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        pytest.skip("cmake is not found")
    subprocess.run([cmake, f"-DFROM={file}", f"-DFOLDER={folder}", "-P", SCRIPT], check=True)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """What this build folder made."""
    file = tmp_path / "build" / "library.so"
    file.parent.mkdir()
    file.write_bytes(b"ours")
    return file


def test_the_library_of_another_build_folder_is_replaced(ours: Path, tmp_path: Path) -> None:
    """However new it is; a process that has loaded it keeps what it has."""
    there = tmp_path / "library.so"
    there.write_bytes(b"other")
    os.utime(ours, (0, 0))
    with there.open("rb") as loaded:
        place(ours, tmp_path)
        assert loaded.read() == b"other"
    assert there.read_bytes() == b"ours"
    assert sorted(x.name for x in tmp_path.iterdir()) == ["build", "library.so"]


def test_the_same_library_stays(ours: Path, tmp_path: Path) -> None:
    """So that nothing that looks at times believes in a new one."""
    folder = tmp_path / "package"  # made where there is none
    place(ours, folder)
    before = (folder / "library.so").stat()
    place(ours, folder)
    after = (folder / "library.so").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
