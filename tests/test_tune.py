"""The search for the numbers of choices.h, and that any of them gives correct results."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import plots, tables, tune
from benchmarks.cases import Case
from benchmarks.tune import Tried
from benchmarks.tuning import TRIALS, VARIABLE, Trial, Workers, defaults

ROOT = Path(__file__).parent.parent


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def tried(times: list[list[float]], values: tuple[int, ...] = (1, 2, 4), default: int = 2) -> Tried:
    cases = tuple((Case(f"case {i}"), "forward") for i in range(len(times)))
    return Tried(Trial("tile_keys", values, cases), default, times)


# ---- The variable ------------------------------------------------------------


def test_names_in_the_header_are_those_that_the_library_knows() -> None:
    result = run(["-c", "import torch_ext; torch_ext.cpu_implementation()"], **{VARIABLE: "x=1"})
    assert result.returncode == 1, result.returncode  # an exception, not a signal
    (names,) = re.findall(r"of ((?:\w+, )+\w+), but got 'x=1'", result.stderr)
    assert sorted(names.split(", ")) == sorted(defaults())


def test_bad_number_says_what_was_expected() -> None:
    code = "import torch_ext; torch_ext.cpu_implementation()"
    result = run(["-c", code], **{VARIABLE: "tile_keys=100000"})
    expected = "RuntimeError: torch_ext: expected tile_keys in TORCH_EXT_CHOICES to be a multiple"
    assert expected in result.stderr and "but got '100000'" in result.stderr


@pytest.mark.parametrize(
    "numbers",
    [
        # The smallest of all, and the largest: memory is sized by them.
        "tile_queries=16,tile_keys=8,chunk_keys=8,chunk_queries=8,most_chunks=64,partial_mib=1,"
        "private_slice=0,task_tiles=1,few_queries=0,few_keys=0,kept_keys=0",
        "tile_queries=1024,tile_keys=1024,most_chunks=1,partial_mib=1024,private_slice=16777216,task_tiles=64,"
        "few_queries=0",
        "few_queries=64,few_keys=64,task_rows=1,row_keys=16,row_chunk_numbers=1,most_row_chunks=1024",
        "few_queries=64,task_rows=256,row_keys=4096,tile_queries=16,tile_keys=8",
        # Odd ones: 7 chunks of 3 tiles of 72.
        "tile_queries=48,tile_keys=72,chunk_keys=200,most_chunks=7,row_keys=48,few_queries=3",
    ],
)
def test_any_numbers_give_correct_results(numbers: str) -> None:
    tests = [str(Path(__file__).parent / "test_grid.py"), "-m", "isa"]
    arguments = ["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]
    result = run(arguments, **{VARIABLE: numbers}, TORCH_EXT_POISON="1", MALLOC_PERTURB_="170")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


# ---- What is tried -----------------------------------------------------------


def test_every_choice_is_tried_around_its_default() -> None:
    numbers = defaults()
    assert sorted(trial.choice for trial in TRIALS) == sorted(numbers)
    for trial in TRIALS:
        assert list(trial.values) == sorted(set(trial.values))
        assert trial.values[0] < numbers[trial.choice] < trial.values[-1], trial.choice
        assert numbers[trial.choice] in trial.values


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.choice)
def test_library_takes_every_value_that_is_tried(trial: Trial) -> None:
    case, work = trial.cases[0]
    tiny = replace(case, batch=1, queries=min(case.queries, 9), keys=9)
    with Workers(trial.choice, trial.values, threads=1) as workers:
        times = workers.times(tiny, work, seconds=0.0)
    assert len(times) == len(trial.values)
    assert all(0 < time < 1 for time in times)
    assert workers.seconds > 0


def test_error_in_a_worker_is_raised_here() -> None:
    with (
        pytest.raises(RuntimeError, match="expected tile_keys in TORCH_EXT_CHOICES"),
        Workers("tile_keys", (96, 97), threads=1) as workers,
    ):
        workers.times(Case("tiny", queries=9), "forward", seconds=0.0)


# ---- What is made of it ------------------------------------------------------


def test_gain_is_the_geometric_mean_over_the_cases() -> None:
    x = tried([[8.0, 4.0, 2.0], [1.0, 2.0, 2.0]])
    assert x.relative() == [[2.0, 1.0, 0.5], [0.5, 1.0, 1.0]]
    assert x.gains() == pytest.approx([0.0, 0.0, 1 - math.sqrt(0.5)])


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ([1.0, 1.0, 1.0], 2),
        ([0.98, 1.0, 0.971], 2),  # within the margin
        ([0.969, 1.0, 0.98], 1),
        ([0.9, 1.0, 0.8], 4),
        ([1.5, 1.0, 1.1], 2),
    ],
)
def test_default_is_kept_unless_a_value_wins_by_more_than_the_margin(
    times: list[float], best: int
) -> None:
    x = tried([times])
    assert x.best(margin=0.03) == best
    assert x.summary(0.03)["verdict"] == ("keep" if best == 2 else f"take {best}")
    assert tune.advice([x], 0.03) == (
        [] if best == 2 else [f"csrc/cpu/choices.h: int64_t tile_keys = {best};  (was 2)"]
    )


def test_picture_is_drawn_of_the_table(tmp_path: Path) -> None:
    rows = tried([[1.0, 2.0, 3.0], [9.0, 1.0, 1.0]]).rows()
    tables.save(tmp_path / "tuning.csv", rows)
    figure = plots.tuning(tables.load(tmp_path / "tuning.csv"))
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[0.5, 1, 1.5], [9, 1, 1]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]


def test_a_part_is_measured_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial("tile_keys", (48, 96), ((Case("tiny", queries=9), "backward"),))
    monkeypatch.setattr(tune, "TRIALS", (trial,))
    out = tmp_path / "tuning"
    assert tune.main(["--only=keys", "--seconds=0.001", "--threads=1", f"--out={out}"]) == 0
    rows = tables.load(out / "tuning.csv")
    assert [(row["value"], row["what"]) for row in rows] == [("48", "backward"), ("96", "backward")]
    assert float(rows[1]["time by the default's"]) == 1
    assert (out / "tuning.png").stat().st_size > 1000
    assert "| tile_keys | 48, 96 | 96 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds=0"], "--seconds: expected a number above 0"),
        (["--margin=1"], "--margin: expected a share below 1, but got 1.0"),
        (["--only=tilse"], "--only: expected part of one of tile_queries, tile_keys"),
        ([f"--out={__file__}"], "--out: expected a folder"),
    ],
)
def test_bad_option_says_what_was_expected(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        tune.parse_options(options)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
