"""Examples as their user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Runs a program in its own process, on one thread, from the root of the project."""
    environment = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )


def run_example(script: str, *options: object) -> subprocess.CompletedProcess[str]:
    """Runs one of the Python examples."""
    return run(sys.executable, ROOT / "examples" / script, *options)


def number_after(words: str, text: str) -> float:
    """The first number after `words` in `text`."""
    found = re.search(re.escape(words) + r"\s*([-+.e\d]+)", text)
    assert found, f"no number after {words!r} in:\n{text}"
    return float(found[1])
