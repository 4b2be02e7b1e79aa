"""Writes the measurements of a report of `make gpu` into docs/cuda.md, between its two markers.

make gpu-docs                                # of runs/gpu
make gpu-docs ARGS="--results FOLDER"        # of another one, such as came from another machine
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks import tables
from benchmarks.gpu.programs import ROOT
from benchmarks.gpu.report import PARTS, PICTURE, measurements
from benchmarks.readme import replaced
from benchmarks.tables import Row

RESULTS = Path("runs/gpu")
BEGIN = "<!-- measurements: from here on written by make gpu-docs -->"
END = "<!-- measurements: up to here -->"


def section(found: dict[str, list[Row]]) -> str:
    """The machine in a sentence, how its stages ended, and the measurements."""
    machine = ", ".join(f"{row['what']} {row['value']}" for row in found["machine"])
    stages = "; ".join(f"{row['stage']} {row['verdict']}" for row in found.get("stages", []))
    parts = [f"{machine.removeprefix('device ')}.", f"{stages.capitalize()}."]
    return "\n\n".join([*parts, *measurements(found, "cuda/")])


def main(arguments: list[str] | None = None) -> int:
    """2 where the document has no place for it."""
    parser = argparse.ArgumentParser(
        prog="make gpu-docs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    document = ROOT / "docs" / "cuda.md"
    parser.add_argument("--document", type=Path, default=document, metavar="FILE")
    options = parser.parse_args(arguments)
    found = tables.load_all(options.results, PARTS)
    if "cases" not in found:
        parser.error(f"expected a report of make gpu in '{options.results}', with cases.csv")
    if any("dry run" in row["value"] for row in found["machine"]):
        parser.error(f"the report in '{options.results}' is of a dry run")
    try:
        text = replaced(options.document.read_text("utf-8"), section(found), BEGIN, END)
    except ValueError as error:
        print(f"{options.document}: {error}", file=sys.stderr)
        return 2
    options.document.write_text(text, "utf-8")
    folder = options.document.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    if (options.results / PICTURE).exists():
        shutil.copyfile(options.results / PICTURE, folder / PICTURE)
    print(f"{options.document} and {folder} are from {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
