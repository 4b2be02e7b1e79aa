"""What a process with a share of the tests writes: a line when a test begins, one at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FINISHED = "finished"  # a line of no test: pytest came to its end by itself


def load(path: Path) -> list[dict[str, Any]]:
    """What was written, in order."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def outcomes(path: Path, cut: bool) -> list[dict[str, str]]:
    """One for each test; one that only began was stopped, or ended its process.

    Args:
        path: of the results.
        cut: the time for all tests was over: that the last one did not end says nothing.
    """
    last = {line["test"]: line for line in load(path) if line["outcome"] != FINISHED}
    if cut and last and not is_finished(path):
        last.popitem()
    found = []
    for line in last.values():
        stopped = line["outcome"] == "began"
        outcome = "stopped" if stopped else line["outcome"]
        found.append({**line, "outcome": outcome, "seconds": f"{line['seconds']:.2f}"})
    return found


def is_finished(path: Path) -> bool:
    """Whether the last process came to its end."""
    return any(line["outcome"] == FINISHED for line in load(path))
