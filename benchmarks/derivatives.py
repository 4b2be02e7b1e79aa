"""Times and memory of derivatives that PyTorch gives on its math path only.

    make bench-derivatives                            # times, at 1024 queries and keys
    make bench-derivatives ARGS=--memory              # peak memory of torch_ext, at 8192
    make bench-derivatives ARGS="--memory --math"     # and of the math path: up to 24 GiB

The math path is matmul, softmax, matmul.

Times: torch_ext, the math path and SDPA's own choice of path take turns in one process and the
minimum of many repeats counts. Ratios above 1 mean that torch_ext is faster. SDPA's own choice is
empty where it raises.

Memory: what the process grew by at the worst moment, less inputs and results (all tensors that the
caller gets: output, gradients, tangents). Each number comes from a fresh process, after a small run
that loads the code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import fastest, limit_memory_to_what_is_free, peak_beyond_results, report
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import torch_ext

Attention = Callable[..., Tensor]  # of query, key, value, bias=None, dropout_p=0.0


def own_choice(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """SDPA as a user calls it."""
    return F.scaled_dot_product_attention(query, key, value, bias, dropout_p)


def math_path(**arguments: object) -> Tensor:
    """SDPA on the path that can be differentiated twice, and in forward mode."""
    with sdpa_kernel(SDPBackend.MATH):
        return own_choice(**arguments)


ATTENTIONS: dict[str, Attention] = {
    "torch_ext": torch_ext.attention,
    "math": math_path,
    "SDPA": own_choice,
}


@dataclass(frozen=True)
class Inputs:
    """Random tensors (1, H, length, size)."""

    tensors: list[Tensor]  # query, key, value and, where the case has one, the bias
    grad_output: Tensor
    directions: list[Tensor]  # as tensors
    dropout_p: float

    def output(self, attention: Attention, *tensors: Tensor) -> Tensor:
        """The attention of the case."""
        named = dict(zip(("query", "key", "value", "bias"), tensors, strict=False))
        return attention(**named, dropout_p=self.dropout_p)


def backward(inputs: Inputs, attention: Attention) -> list[Tensor]:
    """Output and gradients."""
    output = inputs.output(attention, *inputs.tensors)
    return [output, *torch.autograd.grad(output, inputs.tensors, inputs.grad_output)]


def double_backward(inputs: Inputs, attention: Attention) -> list[Tensor]:
    """Output, gradients, and the gradients of their product with a direction."""
    output = inputs.output(attention, *inputs.tensors)
    gradients = torch.autograd.grad(output, inputs.tensors, inputs.grad_output, create_graph=True)
    return [
        output,
        *gradients,
        *torch.autograd.grad(gradients, inputs.tensors, inputs.directions),
    ]


def jvp(inputs: Inputs, attention: Attention) -> list[Tensor]:
    """Output and its tangent along a direction."""
    primals = tuple(x.detach() for x in inputs.tensors)
    function = partial(inputs.output, attention)
    return list(torch.func.jvp(function, primals, tuple(inputs.directions)))


def hessian_vector_product(inputs: Inputs, attention: Attention) -> list[Tensor]:
    """Output and gradients, and their tangents along a direction: forward over reverse."""

    def output_and_gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        output, pull_back = torch.func.vjp(partial(inputs.output, attention), *tensors)
        return (output, *pull_back(inputs.grad_output))

    primals = tuple(x.detach() for x in inputs.tensors)
    first, second = torch.func.jvp(output_and_gradients, primals, tuple(inputs.directions))
    return [*first, *second]


@dataclass(frozen=True)
class Case:
    """What is computed, and with which options."""

    run: Callable[[Inputs, Attention], list[Tensor]]
    value_head_size: int = 64
    bias: bool = False
    dropout_p: float = 0.0

    def inputs(self, heads: int, length: int) -> Inputs:
        """Random inputs of head size 64; a bias of all sizes, as a table of positions has."""
        sizes = [64, 64, self.value_head_size] + [length] * self.bias
        tensors = [torch.randn(1, heads, length, size).requires_grad_() for size in sizes]
        first_order = self.run is backward
        return Inputs(
            tensors,
            torch.randn(1, heads, length, self.value_head_size),
            [] if first_order else [torch.randn_like(x) for x in tensors],
            self.dropout_p,
        )


CASES = {
    "double backward": Case(double_backward),
    "jvp": Case(jvp),
    "Hessian-vector product": Case(hessian_vector_product),
    "dropout 0.1, forward and backward": Case(backward, dropout_p=0.1),
    "bias with gradient, forward and backward": Case(backward, bias=True),
    "E = 128, forward and backward": Case(backward, value_head_size=128),
}


def time_of(case: Case, heads: int, length: int, seconds: float) -> dict[str, object]:
    """Times in milliseconds and ratios."""
    inputs = case.inputs(heads, length)
    calls = {name: lambda a=a: case.run(inputs, a) for name, a in ATTENTIONS.items()}
    try:
        calls["SDPA"]()
    except RuntimeError:  # "derivative not implemented", in one wording or another
        del calls["SDPA"]
    times = dict(zip(calls, fastest(list(calls.values()), seconds), strict=True))
    row: dict[str, object] = {f"{name} ms": f"{t * 1e3:.2f}" for name, t in times.items()}
    row.setdefault("SDPA ms", "")
    for name in ("math", "SDPA"):
        ratio = f"{times[name] / times['torch_ext']:.2f}" if name in times else ""
        row[f"ratio to {name}"] = ratio
    return row


def peak_of(name: str, attention: str, heads: int, length: int, threads: int) -> int:
    """Bytes beyond inputs and results; called in a process of its own."""
    torch.set_num_threads(threads)
    limit_memory_to_what_is_free()
    case, function = CASES[name], ATTENTIONS[attention]
    case.run(case.inputs(heads, 130), function)
    inputs = case.inputs(heads, length)
    return peak_beyond_results(lambda: case.run(inputs, function))


def memory_of(name: str, attentions: list[str], *sizes: int) -> dict[str, object]:
    """Peak memory in MiB, each from a fresh process; or that there is not so much."""
    row: dict[str, object] = {}
    for attention in attentions:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                peak = pool.submit(peak_of, name, attention, *sizes).result()
                row[f"{attention} MiB"] = f"{peak / 2**20:.1f}"
            except RuntimeError as error:
                if "allocate memory" not in str(error):
                    raise
                row[f"{attention} MiB"] = "does not fit"
    return row


def main() -> None:
    """Runs the cases and prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--memory", action="store_true", help="measure peak memory, not time")
    add("--math", action="store_true", help="with --memory: also of the math path, many GiB")
    add("--heads", type=int, default=8, help="attention heads")
    add("--length", type=int, help="queries and keys (default: 1024, with --memory 8192)")
    add("--seconds", type=float, default=4.0, help="time for each row")
    add("--threads", type=int, default=torch.get_num_threads(), help="processor cores to use")
    add("--only", default="", help="cases whose name contains this")
    add("--csv", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    names = [name for name in CASES if options.only in name]
    if not names:
        sys.exit(f"--only: expected part of a case's name, but got '{options.only}'")
    length = options.length or (8192 if options.memory else 1024)
    attentions = ["torch_ext", *(["math"] if options.math else [])]
    rows = []
    for name in tqdm(names, desc="measuring", unit="case"):
        if options.memory:
            row = memory_of(name, attentions, options.heads, length, options.threads)
        else:
            row = time_of(CASES[name], options.heads, length, options.seconds)
        sizes = f"1, {options.heads}, {length}, 64, {CASES[name].value_head_size}"
        rows.append({"case": name, "B, H, N = M, D, E": sizes, **row})
    report(rows, options.csv)


if __name__ == "__main__":
    main()
