"""What the commands' options have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch


def positive(kind: type) -> Callable[[str], float]:
    """A type for argparse."""

    def parse(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = 0.0
        if not 0 < value < 1e6:
            raise argparse.ArgumentTypeError(
                f"expected a number above 0 and below 10^6, but got '{text}'"
            )
        return value

    return parse


def new_parser(program: str, description: str | None, only: str) -> argparse.ArgumentParser:
    """A parser with the options of every command.

    Args:
        program: what is typed.
        description: the docstring of the command.
        only: what the text of --only selects.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help=only)
    parser.add_argument(
        "--threads",
        type=positive(int),
        default=torch.get_num_threads(),
        help="processor cores to use (default: %(default)s)",
    )
    return parser
