"""check_spills.py BUILD: fails where a CUDA kernel makes less of its registers than it should.

It must not spill them, nor wait for each of Hopper's products because ptxas could not follow them.
Reads what ptxas reported while BUILD was built (cmake/keep_ptxas_report.sh). `--list` prints every
kernel, with its stack too: local arrays, which a kernel may have for what it rarely does.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Kernels that may: a pattern of "name for architecture", and why.
ALLOWED: dict[str, str] = {}

KERNEL = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'")
REGISTERS = re.compile(r"Used (\d+) registers")
SERIALIZED = re.compile(r"wgmma\S* instructions are serialized due to (.*?) the function '(\w+)'")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


class Kernel(NamedTuple):
    """What ptxas says of one kernel, in bytes for each thread."""

    name: str
    registers: int
    stack: int
    spilled: int

    def __str__(self) -> str:
        memory = f"{self.spilled} bytes spilled, {self.stack} bytes of stack"
        return f"{self.name}: {self.registers} registers, {memory}"


def reports(build: Path) -> Iterator[str]:
    """The report of each file that nvcc compiles in this build."""
    for command in json.loads((build / "compile_commands.json").read_text()):
        if not command["file"].endswith(".cu"):
            continue
        report = build / f"{command['output']}.ptxas"
        if not report.exists():
            sys.exit(f"{report} is missing: build the target torch_ext first")
        yield report.read_text()


def readable(symbol: str) -> str:
    """The kernel's name in C++: "Forward<BFloat16>"."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    name = name.strip().replace("torch_ext::cuda::", "")
    match = re.fullmatch(r"void detail::run_kernel<(.*?) ?>\(.*\)", name)
    return match[1] if match else name


def serialized(texts: list[str]) -> list[str]:
    """A line for each kernel whose products wait for one another, and why."""
    found = {(readable(name), why) for text in texts for why, name in SERIALIZED.findall(text)}
    return [f"products wait for one another: {name}: {why}" for name, why in sorted(found)]


def kernels(texts: list[str]) -> list[Kernel]:
    """Every kernel for every architecture."""
    found = []
    for report in texts:
        for part in re.split(r"(?=ptxas info +: Compiling entry function)", report)[1:]:
            kernel, registers, memory = (x.search(part) for x in (KERNEL, REGISTERS, MEMORY))
            if not (kernel and registers and memory):
                sys.exit(f"ptxas writes what this program does not read:\n{part}")
            # Functions that were not inlined have lines of their own.
            sums = [sum(map(int, column)) for column in zip(*MEMORY.findall(part), strict=True)]
            name = f"{readable(kernel['name'])} for {kernel['architecture']}"
            found.append(Kernel(name, int(registers[1]), sums[0], sums[1] + sums[2]))
    return sorted(found)


def main() -> int:
    """Says which kernels are wrong, and which exceptions are no longer needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--list", action="store_true", help="print every kernel")
    options = parser.parse_args()
    texts = list(reports(options.build))
    found, waiting = kernels(texts), serialized(texts)
    if options.list:
        print(*found, sep="\n")
    wrong = [kernel for kernel in found if kernel.spilled]
    unused = [x for x in ALLOWED if not any(re.search(x, kernel.name) for kernel in wrong)]
    wrong = [x for x in wrong if not any(re.search(name, x.name) for name in ALLOWED)]
    for kernel in wrong:
        print(f"spills registers: {kernel}")
    print(*waiting, sep="\n", end="\n" if waiting else "")
    for pattern in unused:
        print(f"ALLOWED in {__file__} names what no kernel needs any more: {pattern}")
    print(f"{len(found)} kernels, {len(wrong)} that spill and should not")
    return 1 if wrong or unused or waiting else 0


if __name__ == "__main__":
    sys.exit(main())
