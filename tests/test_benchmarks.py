"""The benchmark's parts: what is drawn, measured, compared and written."""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    check,
    lengths,
    machine,
    peers,
    plots,
    random_cases,
    readme,
    run,
    suite,
    tables,
)
from benchmarks.cases import CASES, Case, Target
from benchmarks.machine import Peak, level
from benchmarks.measure import fastest
from benchmarks.suite import Row, Settings, Step
from benchmarks.work import ATTENTIONS, WORK

SMALL = Settings(threads=1, seconds=1e-3, quick=True)


def shrunk(case: Case) -> Case:
    """The same options at sizes that take no time; grouped heads stay grouped."""
    b, h, h_kv, n, m, d, e = case.sizes
    heads = min(h // h_kv, 3)
    sizes = {"queries": min(n, 5), "keys": min(m, 7), "batch": min(b, 2)}
    return replace(
        case, **sizes, heads=heads, key_heads=1, head_size=d // 8, value_head_size=e // 8
    )


def test_random_cases_are_the_same_each_time_and_within_their_bounds() -> None:
    cases = random_cases.draw()
    assert cases == random_cases.draw()
    assert cases != random_cases.draw(seed=1)
    others = random_cases.steps(replace(SMALL, seed=1))
    assert [x.name for x in others] != [x.name for x in random_cases.steps(SMALL)]
    assert len(cases) == 200
    for case in cases:
        b, h, h_kv, n, m, d, e = case.sizes
        assert 1 <= b * h <= 64 and h % h_kv == 0
        assert 1 <= n <= 4096 and 1 <= m <= 4096
        assert 8 <= d <= 256 and 8 <= e <= 256
        assert case.flop("forward") <= random_cases.FORWARD_FLOP
        assert b * h * n * m <= random_cases.SCORES


def test_random_cases_have_every_kind_of_option() -> None:
    cases = random_cases.draw()
    assert {case.dtype for case in cases} == set(random_cases.DTYPES)
    assert len({case.layout for case in cases}) == 3
    assert {case.mask for case in cases} == {"none", "bool", "bias"}
    assert any(case.causal for case in cases)
    assert any(case.sizes[1] != case.sizes[2] for case in cases)
    assert any(case.sizes[5] != case.sizes[6] for case in cases)


@pytest.mark.parametrize("case", random_cases.draw(), ids=lambda case: case.name)
def test_sdpa_accepts_random_case_and_agrees(case: Case) -> None:
    small = shrunk(case)
    inputs = small.inputs()
    ours, sdpa = (
        WORK["forward + backward"](ATTENTIONS[name](small, inputs), inputs)()
        for name in ("torch_ext", "SDPA")
    )
    tolerance = 1e-5 if small.dtype in ("float32", "float64") else 5e-2
    for x, y in zip(ours, sdpa, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_flop_counts_visible_pairs(causal: bool) -> None:
    case = Case("", batch=2, heads=3, queries=7, keys=5, head_size=4, value_head_size=6)
    case = replace(case, causal=causal)
    visible = torch.ones(7, 5).tril() if causal else torch.ones(7, 5)
    pairs = 6 * visible.sum().item()
    assert case.flop("forward") == pairs * 2 * (4 + 6)
    assert case.flop("backward") == pairs * 2 * (3 * 4 + 2 * 6)
    assert case.flop("jvp") == pairs * 2 * ((4 + 6) + (3 * 4 + 2 * 6))
    assert case.flop("no such work") == 0
    assert case.exponentials("forward") == pairs
    assert case.exponentials("Hessian-vector product") == 4 * pairs


@pytest.mark.parametrize("mask", ["none", "bool", "bias", "learned bias"])
def test_bytes_are_those_of_inputs_and_results(mask: str) -> None:
    sizes = {"heads": 4, "key_heads": 2, "queries": 7, "keys": 5, "head_size": 4}
    case = Case("", "float64", **sizes, value_head_size=6, mask=mask)
    inputs = case.inputs()
    given = [inputs.query, inputs.key, inputs.value, inputs.mask, inputs.bias]
    read = sum(x.nbytes for x in given if x is not None)
    gradients = sum(x.nbytes for x in inputs.differentiable())
    output = inputs.grad_output.nbytes
    assert case.bytes_moved("forward") == case.bytes_held("forward") == read + output
    assert case.bytes_moved("backward") == read + gradients + 2 * output
    assert case.bytes_held("forward + backward") == case.bytes_moved("backward")
    assert case.bytes_moved("forward + backward") == 2 * read + gradients + 3 * output


def test_least_time_is_that_of_arithmetic_or_of_bytes() -> None:
    case = Case("", "float16", heads=1, queries=6, keys=5, head_size=8)
    flop, size = 2.0 * 30 * (8 + 8), 2.0 * (2 * 6 * 8 + 2 * 5 * 8)
    speeds = machine.Speeds(flop=2.0, exponentials=3.0, memory=0.0, tensors=size)
    assert machine.least_seconds(case, "forward", speeds) == flop / 2 + 30 / 3
    slow = speeds._replace(tensors=size / 1000)
    assert machine.least_seconds(case, "forward", slow) == pytest.approx(1000)


@pytest.mark.parametrize("work", WORK)
def test_tiny_case_is_measured(work: str) -> None:
    first_order = work in ("forward", "backward", "forward + backward")
    target = Target(1e-6, 1e-6) if first_order else Target(math=1e-6)
    case = Case("tiny", queries=9, head_size=8, targets={work: target})
    row = suite.case_row(case, work, SMALL)
    assert row["reached"] == "yes"
    assert float(row["ms"]) > 0
    measured = [float(row[name]) for name in ("ratio to SDPA", "ratio to math") if row[name]]
    assert measured and all(math.isfinite(ratio) for ratio in measured)
    assert bool(row["ratio to SDPA"]) == first_order
    assert measured[0] < float(row["limit"]) < math.inf
    assert float(row["GFLOP/s"]) > 0 and 0 < float(row["share of peak"][:-1]) < 100


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target(2.0), True),
        (Target(2.1), False),
        (Target(math=1.1), False),
        (Target(peak=0.4), False),
        (Target(2.0, 1.0, 0.3), True),
    ],
)
def test_target_is_reached_where_every_number_is(target: Target, reached: bool) -> None:
    assert suite.is_reached(target, {"SDPA": 2.0, "math": 1.0}, 0.3) == reached


def test_fastest_takes_turns_and_keeps_the_minimum() -> None:
    order = []
    times = fastest({name: lambda n=name: order.append(n) for name in "ab"}, seconds=0.0)
    assert "".join(order) == "ab" * 4  # once to warm up, three rounds
    assert set(times) == {"a", "b"} and all(0 < t < 0.1 for t in times.values())


def test_peak_is_measured() -> None:
    peak = Peak.load()
    assert {"float32", "float64"} <= set(peak.kinds())
    for kind in peak.kinds():
        assert 1e9 < peak.flop_per_second(kind, 1) <= peak.best[kind, 1] < 1e13
    assert 1e8 < peak.bytes_per_second(2) <= peak.best["memory", 2] < 1e13
    assert peak.bytes_per_second(1, 2**20) > peak.bytes_per_second(1)  # from a cache


@pytest.mark.parametrize(("kind", "least"), [("float32", 7), ("float64", 12)])
def test_exponentials_cost_at_least_the_steps_of_their_polynomials(kind: str, least: int) -> None:
    peak = Peak.load()
    exponentials = peak.exponentials_per_second(kind, 1)
    multiply_adds = peak.best[kind, 1] / 2
    assert 0.7 * least < multiply_adds / exponentials < 10 * least
    assert peak.exponentials_per_second(kind, 1) == exponentials


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])
def test_measured_loop_sums_up_exponentials(kind: str, tolerance: float) -> None:
    scores = np.random.default_rng(0).uniform(-17, 3, 256).astype(kind)
    sum_up = getattr(machine.build_peak(), f"{kind}_sum_of_exponentials")
    sum_up.restype = ctypes.c_double
    number = ctypes.c_float if kind == "float32" else ctypes.c_double
    address = ctypes.c_void_p(scores.ctypes.data)
    expected = np.exp(scores.astype(np.float64) - 3).sum()
    for rounds in (1, 5):
        found = sum_up(address, number(3), ctypes.c_long(rounds))
        assert found == pytest.approx(rounds * expected, rel=tolerance)


def test_other_libraries_give_our_result_where_they_are_installed() -> None:
    case = Case("tiny", queries=6, keys=6, head_size=8, causal=True)
    calls = peers.calls_of(case, SMALL)
    assert {"torch_ext", "SDPA", "math", "naive"} <= set(calls)
    assert set(peers.PEERS) <= {*calls, *peers.absent(), "flex_attention"}


def test_memory_of_ours_does_not_hold_a_matrix() -> None:
    row = lengths.memory_row(1500, "forward + backward", SMALL)
    assert float(row["math MiB"]) > 2 * 1500**2 * 4 / 2**20 > 4 * float(row["torch_ext MiB"])


# ---- Regressions -------------------------------------------------------------


def a_row(ratio: str, math_ratio: str = "") -> Row:
    row = {"case": "long", "dtype": "float32", "what": "forward"}
    return {**row, "ratio to SDPA": ratio, "ratio to math": math_ratio}


def compared(stored: Row, *measured: Row) -> list[str]:
    """What check.compare says when the case is measured as given, the second time if needed."""
    step, again = (Step("cases", "", lambda row=row: row) for row in (measured * 2)[:2])
    return check.compare([step], [again], [stored], 0.15)[1]


def test_fallen_ratio_is_named() -> None:
    (line,) = compared(a_row("2.00"), a_row("1.69"))
    assert "long, float32, forward" in line and "2.00" in line and "1.69" in line
    assert len(compared(a_row("2.00", "9.00"), a_row("2.00", "7.00"))) == 1


def test_ratio_within_tolerance_passes() -> None:
    assert compared(a_row("2.00"), a_row("1.71")) == []
    assert compared(a_row("2.00"), a_row("1.00"), a_row("2.10")) == []  # measured again
    assert compared({**a_row("2.00"), "case": "another"}, a_row("1.00")) == []


def test_check_leaves_with_1_after_a_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "LARGEST_SHARE", 1.0)  # whatever else runs beside the tests
    stored = tmp_path / "ratios.csv"
    options = ["--only=short float32", "--seconds=0.01", "--threads=1", f"--stored={stored}"]
    assert check.main([*options, "--update"]) == 0
    rows = tables.load(stored)
    assert [row["what"] for row in rows] == ["forward", "backward"]
    tables.save(stored, [{**row, "ratio to SDPA": "0.01"} for row in rows])
    assert check.main(options) == 0
    tables.save(stored, [{**row, "ratio to SDPA": "999.00"} for row in rows])
    assert check.main(options) == 1
    assert "ratio to SDPA was 999.00" in capsys.readouterr().out
    tables.save(stored, [{**row, "instruction sets": "none"} for row in rows])
    assert check.main(options) == 2
    assert level() in capsys.readouterr().err
    monkeypatch.setattr(check, "LARGEST_SHARE", -1.0)
    assert check.main([*options, "--update"]) == 2
    assert tables.load(stored)[0]["instruction sets"] == "none"


def test_update_keeps_what_it_did_not_measure(tmp_path: Path) -> None:
    other = {"instruction sets": "none", **a_row("3.00")}
    path = tmp_path / "ratios.csv"
    check.store([a_row("2.00")], [other], path)
    check.store([a_row("2.50")], tables.load(path), path)
    assert [row["ratio to SDPA"] for row in tables.load(path)] == ["3.00", "2.50"]


def test_stored_ratios_are_of_cases_that_there_are() -> None:
    known = {(case.name, case.dtype, work) for case in CASES for work in case.targets}
    for row in tables.load(check.STORED):
        assert check.key_of(row) in known or row["case"].startswith("language model")


# ---- Tables, README, options -------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with results of one small part."""
    folder = tmp_path / "results"
    steps = run.choose(run.all_steps(SMALL), "calls:")
    run.save(run.measure(steps, SMALL), folder)
    return folder


def test_readme_is_rewritten_between_its_markers_and_the_same_twice(
    results: Path, tmp_path: Path
) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{readme.BEGIN}\nold\n{readme.END}\n\nafter\n", encoding="utf-8")
    options = [f"--results={results}", f"--readme={path}"]
    assert readme.main(options) == 0
    first = path.read_text(encoding="utf-8")
    assert first.startswith("before\n\n") and first.endswith("\n\nafter\n") and "old" not in first
    assert "| SDPA µs |" in first
    assert readme.main(options) == 0
    assert path.read_text(encoding="utf-8") == first
    path.write_text("no markers", encoding="utf-8")
    assert readme.main(options) == 2
    assert path.read_text(encoding="utf-8") == "no markers"


def test_readme_names_the_targets_that_were_missed(results: Path) -> None:
    row = {"case": "long", "dtype": "float32", "what": "forward", "ratio to math": ""}
    row |= {"share of peak": "70%", "target": "1.3", "limit": "1.5"}
    rows = [row | {"ratio to SDPA": "1.2", "reached": "no"}]
    rows += [row | {"case": "short", "ratio to SDPA": "1.4", "reached": "yes"}]
    text = readme.section(tables.load_all(results) | {"cases": rows}, [])
    assert (
        "1 of 2 targets reached.\n- long, float32, forward: 1.2 70%, aimed at 1.3, limit 1.5"
        in text
    )
    assert "- short" not in text


def test_own_readme_has_the_markers() -> None:
    assert readme.replaced((readme.ROOT / "README.md").read_text(encoding="utf-8"), "new")


def test_results_of_an_earlier_run_do_not_stay(results: Path) -> None:
    tables.save(results / "random.csv", [{"x": "1"}])
    (results / plots.PICTURES[0]).write_bytes(b"")
    run.save({"calls": [{"x": "1"}]}, results)
    assert sorted(path.name for path in results.iterdir()) == ["calls.csv"]
    assert tables.load_all(results) == {"calls": [{"x": "1"}]}


def test_pictures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    steps = run.choose(run.all_steps(SMALL), "short float32")
    steps += run.choose(run.all_steps(SMALL), "random 4 ")
    steps += run.choose(run.all_steps(SMALL), "length 256 ")
    run.save(run.measure(steps, SMALL), tmp_path)
    for name in plots.PICTURES:
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds=0"], "--seconds: expected a number above 0"),
        (["--threads=two"], "--threads: expected a number above 0 and below 10^6, but got 'two'"),
        ([f"--out={__file__}"], "--out: expected a folder"),
    ],
)
def test_bad_option_says_what_was_expected(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run.parse_options(options)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_step_lists_the_steps() -> None:
    with pytest.raises(SystemExit, match="--only: expected part of a step's name, but got 'lnog'"):
        run.choose(run.all_steps(SMALL), "lnog")


def test_missing_results_and_ratios_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        readme.main(["--results=nowhere"])
    assert "expected results of make bench in 'nowhere'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        check.main(["--stored=nowhere"])
    assert "expected a table of ratios, but 'nowhere' is missing" in capsys.readouterr().err


def test_processor_that_others_use_is_told_from_our_own_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = [100, 0, 0, 100, 0, 0, 0, 0]
    monkeypatch.setattr(machine, "_ticks", lambda: ticks)
    watch = machine.Bystanders.watch()
    ticks = [100 + 60, 0, 10, 100 + 25, 5, 0, 0, 0]
    assert watch.share() == pytest.approx(0.7, abs=0.1)
    watch.own -= 70 / os.sysconf("SC_CLK_TCK")  # as if all of it had been ours
    assert watch.share() == pytest.approx(0.0, abs=0.1)
