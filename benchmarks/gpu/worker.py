"""Measures the steps whose names come in, one line each, and answers each with a line of JSON.

A process of its own: a kernel that fails can make a GPU useless to the process that launched it,
and one that hangs has to be ended with its process. control.py starts another one then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings

import torch

import benchmarks.gpu.cases as cases
from benchmarks.gpu import rows
from benchmarks.suite import Settings


def main() -> None:
    """Until there are no more lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    settings = Settings(torch.get_num_threads(), options.seconds, True, options.device)
    known = {step.name: step for step in cases.steps()}
    for line in sys.stdin:
        step = known[line.strip()]
        print(f"\n---- {step.name}", flush=True)
        try:
            answer: dict[str, object] = {"row": rows.measure(step, settings)}
            if options.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}", "usable": usable(options.device)}
        print(json.dumps(answer), file=answers)


def usable(device: str) -> bool:
    """Whether the device still answers this process."""
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main()
