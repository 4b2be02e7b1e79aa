"""Tables: as Markdown, as CSV files of a folder, and back."""

from __future__ import annotations

import csv
from pathlib import Path

Row = dict[str, str]

PARTS = ("machine", "cases", "scaling", "calls", "peers", "random", "time", "memory")


def markdown(rows: list[Row], leave_out: tuple[str, ...] = ()) -> str:
    """A table of the columns that are not empty everywhere."""
    columns = [
        column for column in rows[0] if column not in leave_out and any(row[column] for row in rows)
    ]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def save(path: Path, rows: list[Row]) -> None:
    """Writes a CSV file; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def load(path: Path) -> list[Row]:
    """Reads a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load_all(folder: Path, parts: tuple[str, ...] = PARTS) -> dict[str, list[Row]]:
    """The tables of a run by part, those that were measured."""
    return {part: load(folder / f"{part}.csv") for part in parts if _is_there(folder, part)}


def _is_there(folder: Path, part: str) -> bool:
    return (folder / f"{part}.csv").exists()
