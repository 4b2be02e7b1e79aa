"""Trains a small language model through torch_ext.attention, on text that every machine has.

    python examples/language_model/train.py                   # Python's documentation and source
    python examples/language_model/train.py --text book.txt   # or any text

Into the folder --out go loss.png, attention_layer_*.png, sample.txt and model.pt, a TorchScript
archive that generate.cpp beside this file loads, runs and trains further without Python. The exit
status is 0 if the model predicts held-out text better than a bigram model counted on the same
training text, 1 if it was saved but does not, and 2 if an option was wrong and nothing was saved.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data import (
    BigramModel,
    Corpus,
    as_tensor,
    even_windows,
    random_windows,
    read_corpus,
    standard_library,
)
from model import LanguageModel, cross_entropy, generate
from report import compare_models, draw_attention, draw_losses

LARGEST = 2**31 - 1  # of a number, so that none overflows
ABOVE_0 = (
    *("context", "width", "heads", "layers", "batch", "steps", "minutes", "learning_rate", "clip"),
    *("evaluations", "held_out_windows", "temperature", "threads"),
)


def parse_options() -> argparse.Namespace:
    """The options, each checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--text", type=Path, nargs="+", metavar="FILE", help="text instead of Python's library")
    add("--out", type=Path, default=Path("runs/language_model"), help="folder for the results")
    add("--held-out-share", type=float, default=0.1, help="of each file, at its end")
    add("--context", type=int, default=128, help="bytes in a sequence")
    add("--width", type=int, default=128, help="size of the vector that stands for a byte")
    add("--heads", type=int, default=4, help="attention heads")
    add("--layers", type=int, default=4, help="blocks")
    add("--batch", type=int, default=8, help="sequences in a step")
    add("--steps", type=int, default=2000, help="optimiser steps")
    add("--minutes", type=float, default=2.5, help="training ends here if the steps do not")
    add("--learning-rate", type=float, default=4e-3, help="at its highest")
    add("--warm-up", type=float, default=0.05, help="share of training in which the rate rises")
    add("--betas", type=float, nargs=2, default=[0.9, 0.95], metavar="BETA", help="of AdamW")
    add("--weight-decay", type=float, default=0.1, help="of matrices")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--evaluations", type=int, default=10, help="points of the held-out loss curve")
    add("--held-out-windows", type=int, default=256, help="sequences in the final held-out loss")
    add("--prompt", default="def attention(query, key, value):\n", help="start of the sample")
    add("--sample-bytes", type=int, default=300, help="length of the sample")
    add("--map-text", default="for key, value in table.items():", help="text of attention maps")
    add("--temperature", type=float, default=0.7, help="of the sample")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--seed", type=int, default=0, help="of weights, batches and sample")
    add("--threads", type=int, default=torch.get_num_threads(), help="processor cores to use")
    options = parser.parse_args()
    check(parser, options)
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Leaves with status 2 and a message that names the option where a value is not possible."""

    def need(name: str, possible: bool, what: str) -> None:
        if not possible:
            value = getattr(options, name)
            parser.error(f"--{name.replace('_', '-')} must be {what}, but got {value!r}")

    for name in ABOVE_0:
        need(name, 0 < getattr(options, name) <= LARGEST, "above 0 and below 2^31")
    for name in ("sample_bytes", "weight_decay", "seed"):
        need(name, 0 <= getattr(options, name) <= LARGEST, "at least 0 and below 2^31")
    need("held_out_share", 0 < options.held_out_share < 1, "between 0 and 1")
    need("warm_up", 0 <= options.warm_up < 1, "at least 0 and below 1")
    need("betas", all(0 <= beta < 1 for beta in options.betas), "at least 0 and below 1")
    twice = 2 * options.heads
    need(
        "width", options.width % twice == 0, f"a multiple of {twice}, twice --heads (rotary pairs)"
    )
    need("prompt", options.prompt != "", "at least one character")
    need("map_text", options.map_text != "", "at least one character")


def leave(message: str) -> NoReturn:
    """Says why nothing was saved, and leaves with status 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def load_text(options: argparse.Namespace) -> Corpus:
    """Reads the text; exits with a message where there is too little of it."""
    files = options.text or standard_library()
    try:
        corpus = read_corpus(files, options.held_out_share)
    except OSError as error:
        leave(f"cannot read the text: {error}")
    for name, text in (("training", corpus.training), ("held-out", corpus.held_out)):
        if len(text) <= options.context:
            leave(
                f"the {name} text has {len(text)} bytes, but a sequence needs more than --context "
                f"{options.context}; give more with --text, or a smaller --context"
            )
    print(
        f"text: {len(files)} files, {len(corpus.training) / 1e6:.2f} MB to train on, "
        f"{len(corpus.held_out) / 1e6:.2f} MB held out"
    )
    return corpus


def learning_rate(progress: float, *, highest: float, warm_up: float) -> float:
    """Rises linearly while progress, in 0..1, is below `warm_up`, then falls to 0 as a cosine."""
    if progress < warm_up:
        return highest * progress / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def make_optimizer(
    model: nn.Module, *, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW whose weight decay leaves biases and norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    *,
    clip: float,
    dtype: torch.dtype,
) -> float:
    """One step down the gradient; the loss of the batch before it, in nats per byte.

    dtype bfloat16 is that of projections and attention; weights and their gradients are float32.
    """
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = cross_entropy(model, batch)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def held_out_loss(model: nn.Module, batch: Tensor, at_once: int) -> float:
    """Mean loss over the windows of `batch`, in nats per byte."""
    losses = [cross_entropy(model, part) * len(part) for part in batch.split(at_once)]
    return (sum(losses) / len(batch)).item()


def train(
    model: nn.Module, corpus: Corpus, options: argparse.Namespace
) -> tuple[list[float], dict[int, float]]:
    """Trains until the steps or the minutes are over; the training and held-out loss by step."""
    optimizer = make_optimizer(model, betas=tuple(options.betas), weight_decay=options.weight_decay)
    generator = torch.Generator().manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    check = even_windows(corpus.held_out, options.held_out_windows // 4, options.context)
    every = max(1, options.steps // options.evaluations)
    losses: list[float] = []
    held_out: dict[int, float] = {}
    start = time.perf_counter()
    bar = tqdm(range(1, options.steps + 1), desc="training", unit="step")
    for step in bar:
        progress = max(step / options.steps, (time.perf_counter() - start) / 60 / options.minutes)
        if progress > 1:
            bar.write(f"the {options.minutes} --minutes are over after {step - 1} steps")
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                progress, highest=options.learning_rate, warm_up=options.warm_up
            )
        batch = random_windows(corpus.training, options.batch, options.context, generator)
        losses.append(update(model, optimizer, batch, clip=options.clip, dtype=dtype))
        if step % every == 0:
            held_out[step] = held_out_loss(model, check, options.batch)
        speed = step * options.batch * options.context / (time.perf_counter() - start)
        bar.set_postfix_str(f"loss {losses[-1]:.3f}, {speed:,.0f} tokens/s", refresh=False)
    return losses, held_out


def compare_with_sdpa(model: LanguageModel, build: dict[str, int], batch: Tensor) -> None:
    """Prints how far the trained model is from its twin that calls PyTorch's own attention."""
    twin = LanguageModel(**build, attention=F.scaled_dot_product_attention)
    twin.load_state_dict(model.state_dict())
    differences = compare_models(model, twin, batch)
    logits, gradients = differences[0], differences[1:]
    worst = max(gradients, key=lambda difference: difference.largest)
    print("largest difference from scaled_dot_product_attention, on the trained weights:")
    print(f"  logits     {logits.largest:.1e}  (largest logit {logits.scale:.1e})")
    print(f"  gradients  {worst.largest:.1e}  (largest entry {worst.scale:.1e}, in {worst.name})")


def main() -> int:
    """Trains, compares, saves, draws; 0 if the model beats the bigram model."""
    options = parse_options()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        leave(f"cannot make the folder --out: {error}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    corpus = load_text(options)
    build = {name: getattr(options, name) for name in ("context", "width", "heads", "layers")}
    model = LanguageModel(**build)
    weights = sum(weight.numel() for weight in model.parameters())
    print(f"model: {weights:,} weights in {options.layers} layers of {options.heads} heads")
    losses, held_out = train(model, corpus, options)

    batch = even_windows(corpus.held_out, options.held_out_windows, options.context)
    loss = held_out_loss(model, batch, options.batch)
    bigram = BigramModel(corpus.training).loss(batch)
    print(f"held-out loss: {loss:.3f} nats per byte, bigram model {bigram:.3f}")
    compare_with_sdpa(model, build, batch[: options.batch])

    torch.jit.script(model).save(options.out / "model.pt")
    sample = generate(
        model,
        options.prompt,
        count=options.sample_bytes,
        temperature=options.temperature,
        generator=torch.Generator().manual_seed(options.seed),
    )
    (options.out / "sample.txt").write_text(sample, encoding="utf-8")
    draw_losses(losses, held_out, bigram, options.out / "loss.png")
    draw_attention(model, as_tensor(os.fsencode(options.map_text)).long(), options.out)
    print(f"saved pictures, model.pt and sample.txt in {options.out}; the sample:\n\n{sample}\n")
    if loss < bigram:
        return 0
    print("the model does not beat the bigram model: train it longer", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
