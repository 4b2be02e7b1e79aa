"""`make gpu` without a GPU: a dry run, what it does after failures, and the document it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import tables
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import cases, clock, control, docs, programs, report, shares, stages
from benchmarks.gpu.programs import Timer
from benchmarks.gpu.stages import Machine, Outcome

ROOT = Path(__file__).parent.parent


def test_dry_run_goes_through_all_stages(tmp_path: Path) -> None:
    options = ["--dry-run", "--only=N 512", "--seconds=0.001", f"--out={tmp_path}"]
    status = gpu.main([*options, "--tests=direction"])
    found = tables.load_all(tmp_path, report.PARTS)
    verdicts = {row["stage"]: row["verdict"] for row in found["stages"]}
    text = (tmp_path / "report.md").read_text("utf-8")
    assert status == 0, text + (tmp_path / "log.txt").read_text("utf-8")[-4000:]
    assert verdicts == {
        "build": "left out",
        "operators": "passed",
        "tests": "passed",
        "sanitizer": "left out",
        "measure": "passed",
    }
    assert found["tests"] and all(test["outcome"] == "passed" for test in found["tests"])
    assert [row["what"] for row in found["cases"]] == ["forward", "backward"]
    for row in found["cases"]:
        assert float(row["ratio to math"]) > 0 and float(row["TFLOP/s"]) > 0
        assert "DIFFERS" not in row["notes"] and "without cuDNN" in row["notes"]
    assert "a dry run on the CPU" in text and "N 512, D 64 | bfloat16" in text
    assert (tmp_path / report.PICTURE).stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) <= 8  # so few that they are easily carried elsewhere


# ---- What fails is written down, and the rest goes on --------------------------------------------

STUB = """
import json, sys, time
for line in sys.stdin:
    name = line.strip()
    if name == "cases: hangs":
        time.sleep(600)
    if name == "cases: breaks":
        sys.exit(7)
    answer = {"error": "wrong", "usable": True} if name == "cases: raises" else {"row": {"x": "1"}}
    print(json.dumps(answer), flush=True)
"""


def test_worker_that_hangs_or_breaks_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    start = programs.start
    monkeypatch.setattr(control, "START", 0.0)
    monkeypatch.setattr(control, "LIMITS", {"cases": 5.0})
    monkeypatch.setattr(
        programs, "start", lambda _, *rest, **more: start([sys.executable, stub], *rest, **more)
    )
    names = [f"cases: {x}" for x in ("first", "raises", "breaks", "hangs", "last")]
    answers = dict(control.measure(names, [], Timer(30), tmp_path / "log"))
    assert list(answers) == names
    assert answers["cases: first"] == answers["cases: last"] == {"row": {"x": "1"}}
    assert answers["cases: raises"]["error"] == "wrong"
    assert "ended with status 7" in answers["cases: breaks"]["error"]
    assert "stopped after 5 s" in answers["cases: hangs"]["error"]
    assert not list(control.measure(names, [], Timer(0), tmp_path / "log"))


TESTS = """
import os, time
import pytest
import torch

@pytest.mark.parametrize("device", ["cpu"])
class TestAll:
    def test_first(self, device): pass
    def test_wrong(self, device): assert 1 == 2
    def test_breaks(self, device): os._exit(9)
    def test_hangs(self, device): time.sleep(600)
    def test_last(self, device): pass
"""


def test_tests_go_on_behind_one_that_breaks_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_tangent.py").write_text(TESTS)  # the one that a dry run takes
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(stages, "TEST_LIMIT", 2)
    outcome = stages.tests(Machine("cpu", tmp_path / "log.txt"), Timer(90))
    log = (tmp_path / "log.txt").read_text("utf-8")
    assert outcome.verdict == "failed" and outcome.text == "1 failed, 2 passed, 2 stopped", log
    results = {test["test"].split("::")[-1]: test["outcome"] for test in outcome.tests}
    assert results == {
        "test_first[cpu]": "passed",
        "test_wrong[cpu]": "failed",
        "test_breaks[cpu]": "stopped",
        "test_hangs[cpu]": "stopped",
        "test_last[cpu]": "passed",
    }
    assert any("test_wrong" in line and "assert 1 == 2" in line for line in outcome.lines)


def test_a_test_that_the_time_ended_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "share.jsonl"
    lines = [{"test": "a", "outcome": "passed"}, {"test": "b", "outcome": "began"}]
    text = "\n".join(json.dumps({**line, "seconds": 1.0, "message": ""}) for line in lines)
    path.write_text(text + '\n{"test": "c", "outc')
    assert [x["outcome"] for x in shares.outcomes(path, cut=False)] == ["passed", "stopped"]
    assert [x["outcome"] for x in shares.outcomes(path, cut=True)] == ["passed"]


def test_stage_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(machine: Machine, timer: Timer) -> Outcome:
        raise OSError("no space left")

    monkeypatch.setitem(stages.STAGES, "build", broken)
    outcome = gpu.run_stage("build", Machine("cuda", tmp_path / "log"), Timer(1))
    assert (outcome.verdict, outcome.text) == ("failed", "OSError: no space left")


def test_build_without_its_tools_names_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs, "find", lambda name: None)
    outcome = stages.build(Machine("cuda", tmp_path / "log"), Timer(1))
    assert outcome.verdict == "failed" and "cmake and nvcc not found" in outcome.text


def test_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sleep = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]
    assert programs.run(sleep, log, 3.0) is None
    assert programs.run([sys.executable, "-c", "raise SystemExit(4)"], log, 60.0) == 4
    assert "\nhere\n" in log.read_text("utf-8")


# ---- Cases, options, document --------------------------------------------------------------------


def test_steps_have_names_of_their_own() -> None:
    names = [step.name for step in cases.steps()]
    assert len(set(names)) == len(names)
    for head_size in (64, 128, 256):
        for causal in ("", ", causal"):
            for work in cases.FIRST:
                assert f"cases: long, D {head_size}{causal} bfloat16 {work}" in names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dry-run", "--stages=build,bild"], "--stages: expected some of build, operators"),
        (["--dry-run", "--only=lnog"], "--only: no measurement has 'lnog' in its name"),
        (["--dry-run", f"--out={__file__}"], "--out: expected a folder"),
        (["--dry-run", "--minutes=0"], "--minutes: expected a number above 0"),
    ],
)
def test_bad_option_says_what_was_expected(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.parse_options(options)
    assert message in capsys.readouterr().err


def test_no_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.parse_options([])
    assert "sees no GPU; --dry-run needs none" in capsys.readouterr().err


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A report as one from a GPU would be."""
    row = dict.fromkeys(("case", "dtype", "what", "ms", "TFLOP/s", "notes"), "")
    row |= {"case": "long", "TFLOP/s": "512.5", "notes": "without flash: refused"}
    folder = tmp_path / "results"
    folder.mkdir()
    found = {"machine": [{"what": "device", "value": "a GPU"}, {"what": "driver", "value": "1"}]}
    made = report.Report(folder, found)
    made.add_stage("tests", Outcome("failed", "1 failed", ["failed: test_x: because"]))
    for _ in range(3):
        made.add_row("cases: long", row)
    made.add_failure("flex: long", "it\nbroke")
    return folder


def test_report_has_what_failed(results: Path) -> None:
    text = (results / "report.md").read_text("utf-8")
    assert "- failed: test_x: because" in text and "- flex: long: it broke" in text
    assert "- without flash: refused (3 rows)" in text and text.count("refused") == 1


def test_document_gets_the_measurements(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cuda.md"
    path.write_text(f"before\n\n{docs.BEGIN}\nold\n{docs.END}\n\nafter\n")
    (results / report.PICTURE).write_bytes(b"picture")
    options = [f"--results={results}", f"--document={path}"]
    assert docs.main(options) == 0
    first = path.read_text("utf-8")
    assert first.startswith("before\n\n") and first.endswith("\n\nafter\n") and "old" not in first
    assert "a GPU, driver 1." in first and "512.5" in first and "Tests failed." in first
    assert (tmp_path / "cuda" / report.PICTURE).read_bytes() == b"picture"
    assert docs.main(options) == 0 and path.read_text("utf-8") == first
    path.write_text("no markers")
    assert docs.main(options) == 2
    tables.save(results / "machine.csv", [{"what": "device", "value": "none: a dry run"}])
    with pytest.raises(SystemExit):
        docs.main(options)
    assert "is of a dry run" in capsys.readouterr().err


def test_own_document_has_the_markers() -> None:
    text = (ROOT / "docs" / "cuda.md").read_text("utf-8")
    assert docs.replaced(text, "new", docs.BEGIN, docs.END)


# ---- The clock, on a simulated device ------------------------------------------------------------


class Device:
    """A queue of work: calls take time to queue, more time to run, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, queueing: float, running: float) -> None:
        self.now, self.free, self.count = 0.0, 0.0, 0
        self.queueing, self.running = queueing, running
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.time = device.free = max(device.now, device.free)

            def synchronize(self) -> None:
                device.now = max(device.now, self.time)

            def elapsed_time(self, end: Event) -> float:
                return (end.time - self.time) * 1e3

        def sleep(cycles: int) -> None:
            device.free = max(device.now, device.free) + cycles / clock.CYCLES

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", sleep)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(clock.time, "perf_counter", lambda: device.now)

    def call(self) -> None:
        self.count += 1
        self.now += self.queueing
        self.free = max(self.now, self.free) + self.running


@pytest.mark.parametrize(
    ("queueing", "running", "calls"), [(1e-5, 1e-4, 20), (1e-4, 1e-5, 20), (1e-5, 0.5, 1)]
)
def test_clock_leaves_launches_out(
    queueing: float, running: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(monkeypatch, queueing, running)
    read = clock.Clock("cuda")
    assert read(device.call) == pytest.approx(running, rel=1e-6)
    device.count = 0
    assert read(device.call) == pytest.approx(running, rel=1e-6)
    assert calls <= device.count <= calls + 1
