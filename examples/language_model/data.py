"""Text as bytes: where it comes from, what is held out, and a bigram model to compare with."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

BYTES = 256  # the whole vocabulary
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Two byte strings that share no text, each a 1-D uint8 tensor."""

    training: Tensor
    held_out: Tensor


def standard_library() -> list[Path]:
    """The documentation and source text of the running Python's standard library, sorted by name.

    The documentation is in the docstrings and in pydoc_data/topics.py, the language reference.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = (path for path in root.rglob("*.py") if path.is_file())
    return sorted(
        path for path in files if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts)
    )


def read_corpus(files: list[Path], held_out_share: float) -> Corpus:
    """Joins the files in the order given; the last `held_out_share` of each is held out."""
    training, held_out = [], []
    for path in files:
        text = path.read_bytes()
        cut = len(text) - round(held_out_share * len(text))
        training.append(text[:cut])
        held_out.append(text[cut:])
    return Corpus(as_tensor(b"".join(training)), as_tensor(b"".join(held_out)))


def as_tensor(text: bytes) -> Tensor:
    """(length) uint8."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0).byte()


def windows(text: Tensor, starts: Tensor, context: int) -> Tensor:
    """(len(starts), context + 1) int64; the targets are the inputs one byte later."""
    return text[starts[:, None] + torch.arange(context + 1)].long()


def random_windows(text: Tensor, count: int, context: int, generator: torch.Generator) -> Tensor:
    """`count` windows that start anywhere in the text."""
    starts = torch.randint(len(text) - context, (count,), generator=generator)
    return windows(text, starts, context)


def even_windows(text: Tensor, count: int, context: int) -> Tensor:
    """At most `count` windows spread evenly over the text, none overlapping another's targets."""
    count = max(1, min(count, (len(text) - 1) // context))
    starts = torch.arange(count) * ((len(text) - 1) // count)
    return windows(text, starts, context)


class BigramModel:
    """Predicts a byte from the byte before it, by counting pairs; one is added to every count."""

    def __init__(self, text: Tensor) -> None:
        first, second = text[:-1].long(), text[1:].long()
        pairs = torch.bincount(first * BYTES + second, minlength=BYTES * BYTES)
        counts = pairs.view(BYTES, BYTES).double() + 1
        self.log_probability = (counts / counts.sum(1, keepdim=True)).log()  # (first, second)

    def loss(self, batch: Tensor) -> float:
        """Mean cross-entropy in nats per byte over `batch`, windows of (B, N + 1)."""
        return -self.log_probability[batch[:, :-1], batch[:, 1:]].mean().item()
