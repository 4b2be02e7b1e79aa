"""The cases, in the order in which they are measured: what matters most comes first.

Long ones have 16,384 queries and 2048 columns for all heads together, as papers on attention do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cases import Case, Target

FIRST = ("forward", "backward")
SECOND = ("double backward", "jvp", "Hessian-vector product")
WHOLE = ("forward + backward",)


@dataclass(frozen=True)
class Step:
    """One row: what is measured of a case. Part "flex" compares with flex_attention alone."""

    part: str
    case: Case
    work: str

    @property
    def name(self) -> str:
        """What --only searches."""
        return f"{self.part}: {self.case.name} {self.case.dtype} {self.work}"


def _case(name: str, dtype: str, works: tuple[str, ...], **sizes: Any) -> Case:
    return Case(name, dtype, **sizes, targets={work: Target() for work in works})


def _long(head_size: int, length: int = 8192, **options: Any) -> dict[str, Any]:
    return {
        "batch": 16384 // length,
        "heads": 2048 // head_size,
        "queries": length,
        "head_size": head_size,
        **options,
    }


_CAUSAL = {"causal": True}
_GROUPED = {"heads": 32, "key_heads": 8, "head_size": 128}
_SECOND = {"heads": 16, "queries": 2048}

CASES = [
    _case("long, D 128", "bfloat16", FIRST, **_long(128)),
    _case("long, D 128, causal", "bfloat16", FIRST, **_long(128), **_CAUSAL),
    _case("long, D 64", "bfloat16", FIRST, **_long(64)),
    _case("long, D 64, causal", "bfloat16", FIRST, **_long(64), **_CAUSAL),
    _case("long, D 256", "bfloat16", FIRST, **_long(256)),
    _case("long, D 256, causal", "bfloat16", FIRST, **_long(256), **_CAUSAL),
    _case("long, D 64", "float32", FIRST, **_long(64, 4096, batch=1)),
    _case("long, D 128, causal", "float32", FIRST, **_long(128, 4096, batch=1), **_CAUSAL),
    _case("decode", "bfloat16", FIRST[:1], batch=32, queries=1, keys=8192, **_GROUPED),
    _case("second derivatives", "bfloat16", SECOND, **_SECOND),
    _case("learned bias", "bfloat16", WHOLE, batch=4, mask="learned bias", **_SECOND),
    _case("grouped heads, causal", "bfloat16", FIRST, batch=4, queries=4096, **_GROUPED, **_CAUSAL),
    _case("long, D 128", "float16", FIRST, **_long(128)),
    _case("long, D 64, causal", "float16", FIRST, **_long(64), **_CAUSAL),
    _case("second derivatives", "float32", SECOND, **_SECOND),
    _case("N 1024, D 128, causal", "bfloat16", FIRST, **_long(128, 1024), **_CAUSAL),
    _case("N 512, D 64", "bfloat16", FIRST, **_long(64, 512)),
    _case("short", "bfloat16", FIRST, batch=512, heads=16, queries=32),
    _case("one sample, decode", "bfloat16", FIRST[:1], queries=1, keys=16384, **_GROUPED),
    _case("mask", "bfloat16", WHOLE, batch=4, mask="bool", **_SECOND),
    _case("dropout 0.1", "bfloat16", WHOLE, batch=4, dropout_p=0.1, **_SECOND),
    _case("D 192, E 128", "bfloat16", FIRST, **_long(192, value_head_size=128)),
    _case("heads inside", "bfloat16", FIRST, **_long(128, layout="heads inside")),
    _case("N 1024, D 64", "float64", FIRST, heads=16, queries=1024),
    _case("second derivatives", "float64", SECOND, heads=8, queries=1024),
]

# flex_attention compiles for many seconds each time.
_FLEX = [("long, D 128", *FIRST), ("long, D 64, causal", *FIRST), ("learned bias", *WHOLE)]


def tiny(case: Case) -> Case:
    """The same options at sizes that take no time; grouped heads stay grouped."""
    b, h, h_kv, n, m, d, e = case.sizes
    return replace(
        case,
        batch=min(b, 2),
        heads=2 * min(h // h_kv, 2),
        key_heads=2,
        queries=min(n, 6),
        keys=min(m, 6),
        head_size=d // 8,
        value_head_size=e // 8,
    )


def steps() -> list[Step]:
    """All of them, in order."""
    found = [Step("cases", case, work) for case in CASES for work in case.targets]
    by_name = {(case.name, case.dtype): case for case in CASES}
    for name, *works in _FLEX:
        found += [Step("flex", by_name[name, "bfloat16"], work) for work in works]
    found += [Step("calls", Case("tiny tensors"), work) for work in ("without", "with gradient")]
    return found
