"""What is measured in a step: ours, SDPA as a user calls it, each of its paths, and the ceiling."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks import suite
from benchmarks.cases import Case, Inputs
from benchmarks.gpu.cases import SECOND, Step, tiny
from benchmarks.gpu.clock import Call, Clock
from benchmarks.measure import in_rounds
from benchmarks.suite import Row, Settings
from benchmarks.work import ATTENTIONS, WORK, Attention, backend, flex

PATHS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
DETERMINISTIC = ("cuDNN", "flash")  # whose backward is measured in this mode, too
OTHERS = (
    "SDPA",
    *PATHS,
    "math",
    *(f"{name}, deterministic" for name in DETERMINISTIC),
    "flex_attention",
)
MOST_SCORES = 2**31  # bytes of one matrix of scores, of which the math path keeps several
MATMUL = {"bfloat16": 8192, "float16": 8192, "float32": 4096, "float64": 4096}
COPIED = 2**30  # bytes
SPEEDS = ("TFLOP/s", "share of matmul", "GB/s", "share of copy")

# Largest |ours - theirs| / |theirs|, of all results of a call; the math path rounds its weights.
FAR = {"bfloat16": 3e-2, "float16": 4e-3, "float32": 1e-4, "float64": 1e-10}


def measure(step: Step, settings: Settings) -> Row:
    """The row of a step; raises where ours fails, leaves blank what of the others does."""
    case = step.case if settings.device == "cuda" else tiny(step.case)
    torch.manual_seed(0)
    if step.part == "calls":
        return suite.overhead_row(step.work == "with gradient", settings)
    with torch.device(settings.device):
        inputs = case.inputs()
        ceiling, amount = _ceiling(case, step.work, settings.device)
    calls, notes = _calls(case, step, inputs)
    times = in_rounds(calls | ceiling, settings.seconds, Clock(settings.device))
    return _row(case, step, times, notes) | _speeds(case, step.work, times, amount)


def _attentions(case: Case, step: Step) -> dict[str, Callable[[Case, Inputs], Attention]]:
    """Who takes part. The fused paths have no second derivatives."""
    if step.part == "flex":
        return {"torch_ext": ATTENTIONS["torch_ext"], "flex_attention": flex}
    found = dict(ATTENTIONS)
    b, h, _, n, m, _, _ = case.sizes
    if b * h * n * m * getattr(torch, case.dtype).itemsize > MOST_SCORES:
        del found["math"]
    if step.work in SECOND:
        del found["SDPA"]  # which would be the math path
        return found
    return found | {name: partial(backend, path) for name, path in PATHS.items()}


def _calls(case: Case, step: Step, inputs: Inputs) -> tuple[dict[str, Call], list[str]]:
    """The calls by name, and why some are not among them or are not to be trusted."""
    calls: dict[str, Call] = {}
    notes: list[str] = []
    expected: list[Tensor] = []
    for name, make in _attentions(case, step).items():
        try:
            torch.manual_seed(1)  # of the directions of derivatives
            call = WORK[step.work](make(case, inputs), inputs)
            results = _tensors(call())
        except Exception as error:  # of whatever kind: other people's kernels
            if name == "torch_ext":
                raise
            notes.append(f"without {name}: {_first_line(error)}")
            continue
        calls[name] = call
        if name == "torch_ext":
            expected = results
        elif case.dropout_p == 0:
            far = _difference(expected, results)
            if not far < FAR[case.dtype]:
                notes.append(f"{name} DIFFERS by {far:.2g}")
    if step.work == "backward":
        for name in DETERMINISTIC:
            if name in calls:
                calls[f"{name}, deterministic"] = partial(_deterministic, calls[name])
    return calls, notes


def _deterministic(call: Call) -> object:
    """In the mode in which sums have an order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)


def _ceiling(case: Case, work: str, device: str) -> tuple[dict[str, Call], float]:
    """A large matmul and its operations; for one query, which does little with each key, a large
    copy and its bytes, read and written.
    """
    if case.has_one_query:
        data = torch.empty(COPIED if device == "cuda" else 2**20, dtype=torch.int8)
        return {"copy": data.clone}, 2.0 * data.numel()
    if not case.flop(work):
        return {}, 0.0
    n = MATMUL[case.dtype] if device == "cuda" else 64
    a, b = (torch.randn(n, n, dtype=getattr(torch, case.dtype)) for _ in range(2))
    return {"matmul": partial(torch.mm, a, b)}, 2.0 * n**3


def _tensors(results: object) -> list[Tensor]:
    found = [results] if isinstance(results, Tensor) else list(results)  # type: ignore[call-overload]
    return [x.detach() for x in found]


def _difference(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest of all results, relative to that result's norm."""
    found = 0.0
    for a, b in zip(ours, theirs, strict=True):
        norm = b.double().norm().clamp_min(1e-30)
        found = max(found, ((a.double() - b.double()).norm() / norm).nan_to_num(torch.inf).item())
    return found


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _ratio(times: dict[str, list[float]], name: str) -> float:
    """The median of the ratios of the rounds."""
    pairs = zip(times[name], times["torch_ext"], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def _row(case: Case, step: Step, times: dict[str, list[float]], notes: list[str]) -> Row:
    """Medians; the columns of speeds are left for the next function."""
    mine = times["torch_ext"]
    row = {
        "case": case.name,
        "dtype": case.dtype,
        "B, H, Hkv, N, M, D, E": ", ".join(map(str, case.sizes)),
        "what": step.work,
        "ms": f"{statistics.median(mine) * 1e3:.4g}",
        **dict.fromkeys(SPEEDS, ""),
    }
    row |= {f"ratio to {x}": f"{_ratio(times, x):.2f}" if x in times else "" for x in OTHERS}
    for name in (*OTHERS, "matmul", "copy"):
        known = name in times
        row[f"{name} ms"] = f"{statistics.median(times[name]) * 1e3:.4g}" if known else ""
    row["minimum ms"], row["rounds"] = f"{min(mine) * 1e3:.4g}", str(len(mine))
    row["notes"] = "; ".join(notes)
    return row


def _speeds(case: Case, work: str, times: dict[str, list[float]], amount: float) -> Row:
    """Of ours, beside what the matmul or the copy reached in the same rounds."""
    seconds = statistics.median(times["torch_ext"])
    if "matmul" in times:
        flop = case.flop(work)
        share = flop / amount * _ratio(times, "matmul")
        return {"TFLOP/s": f"{flop / seconds / 1e12:.4g}", "share of matmul": f"{share:.1%}"}
    if "copy" in times:
        moved = case.bytes_moved(work)
        share = moved / amount * _ratio(times, "copy")
        return {"GB/s": f"{moved / seconds / 1e9:.4g}", "share of copy": f"{share:.1%}"}
    return {}
