"""Writes the README's performance section from the results of `make bench`.

    make bench-readme                                          # from runs/benchmark
    make bench-readme ARGS="--beside runs/benchmark_avx2"      # with the ratios of another run

What is between the two markers in the README is replaced, and the pictures are copied to docs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks import plots, random_cases, suite, tables
from benchmarks.run import RESULTS

Row = dict[str, str]
Tables = dict[str, list[Row]]

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- benchmark: from here on written by make bench-readme -->"
END = "<!-- benchmark: up to here -->"
PICTURES = "docs/benchmark"
TEXTS = {
    "ratios.png": "Ratio to SDPA by case, other libraries as marks",
    "random.png": "Ratios of random cases, sorted",
    "lengths.png": "Time and memory against length",
}


def replaced(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with the section between its markers.

    Raises:
        ValueError: the text does not have each marker once, in order.
    """
    if not (text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)):
        raise ValueError(f"expected the lines '{begin}' and '{end}' once, in this order")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


def machine_line(machine: list[Row]) -> str:
    """One sentence each about the machine and about what it can give."""
    values = {row["what"]: row["value"] for row in machine}
    threads = values["threads"]
    limits = [
        f"{name.partition(',')[0]} {value}"
        for name, value in values.items()
        if name.endswith(f"threads {threads}")
    ]
    return (
        f"{values['processor']}, {threads} threads, torch {values['torch']}, instruction sets: "
        f"{values['instruction sets']}, {values['seconds for each measurement']} s for each "
        f"measurement. Measured limits: {', '.join(limits)}."
    )


def with_ratios_of(rows: list[Row], other: Tables) -> list[Row]:
    """The cases with the ratios of another run, and their limits, as further columns."""
    name = next(r["value"] for r in other["machine"] if r["what"] == "instruction sets")
    beside = {(row["case"], row["dtype"], row["what"]): row for row in other["cases"]}
    further = []
    for row in rows:
        found = beside.get((row["case"], row["dtype"], row["what"]), {})
        ratio = found.get("ratio to SDPA") or found.get("ratio to math", "")
        further.append({f"ratio, {name}": ratio, f"limit, {name}": found.get("limit", "")})
    return [{**row, **columns} for row, columns in zip(rows, further, strict=True)]


def peers_table(rows: list[Row]) -> str:
    """Ratios only: the times are in the file."""
    kept = [{k: v for k, v in row.items() if not k.endswith(" ms")} for row in rows]
    named = [{k.removeprefix("ratio to "): v for k, v in row.items()} for row in kept]
    return tables.markdown(named)


def section(found: Tables, beside: list[Tables]) -> str:
    """Tables and pictures of what was measured."""
    parts = [machine_line(found["machine"])]
    if "cases" in found:
        rows = found["cases"]
        for other in beside:
            rows = with_ratios_of(rows, other)
        parts.append(tables.markdown(rows, leave_out=("reached", "math ms")))
        first, *missed = suite.summary({"cases": rows})
        parts.append("\n".join([f"{first}.", *(f"- {line.strip()}" for line in missed)]))
        parts.append(picture("ratios.png"))
    if "peers" in found:
        parts.append("Time of other forwards by ours, float32:")
        parts.append(peers_table(found["peers"]))
    if "random" in found:
        lines = random_cases.summary(found["random"])
        parts.append("\n".join(f"- {line}" for line in lines if not line.startswith(" ")))
        parts.append(picture("random.png"))
    if "scaling" in found:
        parts.append("One head alone on one thread and on all, beside plain multiply-adds:")
        parts.append(tables.markdown(found["scaling"], leave_out=("reached",)))
    if "calls" in found:
        parts.append("One call on tensors so small that nothing else counts:")
        parts.append(tables.markdown(found["calls"]))
    if "memory" in found:
        parts.append("Peak memory beyond inputs and results, one head of size 64:")
        parts.append(tables.markdown(found["memory"]))
    if "time" in found:
        parts.append(picture("lengths.png"))
    return "\n\n".join(parts)


def picture(name: str) -> str:
    """A line that shows it."""
    return f"![{TEXTS[name]}]({PICTURES}/{name})"


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The options, each checked."""
    parser = argparse.ArgumentParser(
        prog="make bench-readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, metavar="FOLDER")
    add("--beside", type=Path, nargs="*", default=[], metavar="FOLDER", help="of further runs")
    add("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    options = parser.parse_args(arguments)
    for folder in (options.results, *options.beside):
        if not (folder / "machine.csv").exists():
            parser.error(f"expected results of make bench in '{folder}', but it has no machine.csv")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Rewrites the section; 2 where the README has no place for it."""
    options = parse_options(arguments)
    found = tables.load_all(options.results)
    beside = [tables.load_all(folder) for folder in options.beside]
    text = options.readme.read_text(encoding="utf-8")
    try:
        options.readme.write_text(replaced(text, section(found, beside)), encoding="utf-8")
    except ValueError as error:
        print(f"{options.readme}: {error}", file=sys.stderr)
        return 2
    folder = options.readme.parent / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for name in plots.PICTURES:
        if (options.results / name).exists():
            shutil.copyfile(options.results / name, folder / name)
    print(f"{options.readme} and {folder} are from {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
