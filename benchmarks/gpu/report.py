"""report.md and its tables and pictures, written anew after each step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.gpu.programs import ROOT, find
from benchmarks.gpu.stages import Outcome
from benchmarks.tables import Row

PARTS = ("machine", "stages", "tests", "cases", "calls")
MEASURED = ("cases", "calls")
PICTURE = "cases.png"
HEADINGS = {
    "machine": "Machine",
    "stages": "Stages",
    "cases": "Cases",
    "calls": "Cost of a call on tiny tensors",
}
HOW = """\
Times are those of the work on the device, launches left out where they are faster than it, medians
of rounds in which all take turns; ratios are medians of the ratios of the rounds. Above 1 torch_ext
is faster. "SDPA" chooses its path itself. The share is that of what a large matmul of the same
dtype, float32 without TF32, reached in the same rounds; for one query, of a large copy. Operations
are counted as 4 B H N M D for a forward and 10 B H N M D for a backward, those of hidden pairs of a
causal mask left out. "differs" names results that are far from ours."""
SHORT = tuple(f"{name} ms" for name in ("SDPA", "cuDNN", "flash", "efficient", "math"))
LEFT_OUT = (*SHORT, *(f"{x}, deterministic ms" for x in ("cuDNN", "flash")), "copy ms", "rounds")
LEFT_OUT += ("minimum ms", "notes", "flex_attention ms", "matmul ms")


def describe(device: str) -> list[Row]:
    """What the numbers depend on."""
    values = {"torch": torch.__version__, "Python": sys.version.split()[0]}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        values = {
            "device": f"{properties.name}, sm_{properties.major}{properties.minor}, {memory}",
            "driver": _says(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
            "CUDA of torch": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
            "nvcc": _says([find("nvcc") or "nvcc", "--version"]).rpartition("release ")[2][:4],
            **values,
        }
    else:
        values = {"device": "none: a dry run on the CPU with tiny sizes", **values}
    values["revision"] = _says(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    return [{"what": what, "value": value} for what, value in values.items() if value]


def _says(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


@dataclass
class Report:
    """What was found so far."""

    folder: Path
    found: dict[str, list[Row]]
    lists: dict[str, list[str]] = field(default_factory=dict)  # below a stage
    failed: list[str] = field(default_factory=list)  # steps

    def add_stage(self, name: str, outcome: Outcome) -> None:
        """A row of the stages, and its tests."""
        row = {"stage": name, "verdict": outcome.verdict, "seconds": f"{outcome.seconds:.0f}"}
        self.found.setdefault("stages", []).append({**row, "what": outcome.text})
        self.lists[name] = outcome.lines
        if outcome.tests:
            self.found["tests"] = outcome.tests
        self.save()

    def add_row(self, step: str, row: Row) -> None:
        """A row of a measurement; those with flex_attention are cases, too."""
        part = "calls" if step.startswith("calls") else "cases"
        self.found.setdefault(part, []).append(row)
        self.save()

    def add_failure(self, step: str, error: str) -> None:
        """A step without a row."""
        self.failed.append(f"{step}: {' '.join(error.split())[:300]}")
        self.save()

    def save(self) -> None:
        """The tables and report.md; the pictures take longer, see draw."""
        for part, rows in self.found.items():
            tables.save(self.folder / f"{part}.csv", rows)
        (self.folder / "report.md").write_text("\n\n".join(self.sections()) + "\n", "utf-8")

    def sections(self) -> Iterable[str]:
        """Of report.md."""
        yield "# torch_ext on a GPU"
        yield tables.markdown(self.found["machine"])
        if "stages" in self.found:
            yield f"## Stages\n\n{tables.markdown(self.found['stages'])}"
        for name, lines in self.lists.items():
            if lines:
                yield f"{name}:\n\n" + bullets(lines)
        if self.failed:
            yield "## Steps that failed\n\n" + bullets(self.failed)
        yield from measurements(self.found, "")

    def draw(self) -> None:
        """The pictures, where there is matplotlib."""
        try:
            from benchmarks import plots
        except ImportError as error:
            self.lists["pictures"] = [f"none: {error}"]
            self.save()
            return
        plots.draw_gpu(self.found.get("cases", []), self.folder / PICTURE)


def _notes(rows: list[Row]) -> list[str]:
    """Each note once, with the rows that have it."""
    where: dict[str, list[str]] = {}
    for row in rows:
        for note in filter(None, row.get("notes", "").split("; ")):
            where.setdefault(note, []).append(f"{row['case']}, {row['dtype']}, {row['what']}")
    return [
        f"{note} ({', '.join(names) if len(names) < 3 else f'{len(names)} rows'})"
        for note, names in where.items()
    ]


def bullets(lines: list[str], most: int = 100) -> str:
    """A list."""
    more = [f"- and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*(f"- {line}" for line in lines[:most]), *more])


def measurements(found: dict[str, list[Row]], pictures: str) -> Iterable[str]:
    """Sections of Markdown; the pictures lie in that folder."""
    parts = [part for part in MEASURED if part in found]
    if parts:
        yield HOW
    for part in parts:
        yield f"## {HEADINGS[part]}"
        yield tables.markdown(found[part], leave_out=LEFT_OUT)
        if notes := _notes(found[part]):
            yield bullets(notes)
        if part == "cases":
            yield f"![Speeds and ratios of the cases]({pictures}{PICTURE})"
