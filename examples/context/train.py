"""Trains on small sentences until context decides what a word means, and draws where it looks.

    python examples/context/train.py

"The animal did not cross the street because it was too tired": only the answer, animal, is trained
on, never the attention. On sentences whose nouns never met in training, or not in that order, the
model must then answer right, and the row of "it" must put its largest weight on the right noun, in
at least --least of them; the exit status is 1 otherwise, and 2 if an option was wrong. Pictures go
into the folder --out.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from network import ContextModel, Questions
from pictures import MINIMAL_PAIRS, draw_apple, draw_rows
from sentences import NEW_ORDER, NEW_WORDS, TRAINING, Sentence, all_sentences, vocabulary

LARGEST = 2**31 - 1  # of a number, so that none overflows
ABOVE_0 = ("width", "heads", "batch", "steps", "learning_rate", "clip", "threads")


def parse_options() -> argparse.Namespace:
    """The options, each checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/context"), help="folder for the pictures")
    add("--width", type=int, default=64, help="size of the vector that stands for a word")
    add("--heads", type=int, default=4, help="attention heads of the first layer")
    add("--batch", type=int, default=128, help="sentences in a step")
    add("--steps", type=int, default=800, help="optimiser steps")
    add("--learning-rate", type=float, default=2e-3, help="at its highest")
    add("--warm-up", type=float, default=0.1, help="share of the steps in which the rate rises")
    add("--weight-decay", type=float, default=0.01, help="of all weights")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--least", type=float, default=0.99, help="share of held-out sentences to get right")
    add("--seed", type=int, default=0, help="of weights and batches")
    add("--threads", type=int, default=1, help="processor cores to use; the tensors are small")
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
    for name in ("weight_decay", "seed"):
        need(name, 0 <= getattr(options, name) <= LARGEST, "at least 0 and below 2^31")
    need("width", options.width % 2 == 0, "even: places are told by pairs of numbers")
    need("width", options.width % options.heads == 0, f"a multiple of {options.heads}, --heads")
    warm_up_steps = options.warm_up * options.steps
    need("warm_up", 2 <= warm_up_steps < options.steps, "a share of two --steps or more, below 1")
    need("least", 0 <= options.least <= 1, "at least 0 and at most 1")


def train(model: ContextModel, questions: Questions, options: argparse.Namespace) -> None:
    """Minimises the cross-entropy of the answers, and of nothing else."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        options.learning_rate,
        total_steps=options.steps,
        pct_start=options.warm_up,
    )
    bar = tqdm(range(options.steps), desc="training", unit="step")
    for _ in bar:
        chosen = torch.randint(len(questions.text), (options.batch,))
        meaning = model(questions.text[chosen], questions.asked[chosen])
        loss = F.cross_entropy(model.answer(meaning), questions.answer[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")


@torch.no_grad()
def score(
    model: ContextModel, sentences: list[Sentence], number: dict[str, int]
) -> dict[str, float]:
    """Shares of the sentences, which come as minimal pairs, where the model does well."""
    questions = Questions.encode(sentences, number)
    logits = model.answer(model(questions.text, questions.asked))
    right = logits.argmax(-1) == questions.answer
    shares = {"right answers": right, "pairs all right": right.view(-1, 2).all(1)}
    if sentences[0].words[sentences[0].asked] == "it":
        row = model.look(questions.text, questions.asked)
        shares["largest weight on the right noun"] = row.argmax(-1) == questions.source
    else:
        technology, fruit = logits[:, number["technology"]], logits[:, number["fruit"]]
        is_technology = questions.answer == number["technology"]
        shares["nearer to the right sense"] = (technology > fruit) == is_technology
    return {name: share.double().mean().item() for name, share in shares.items()}


def report(
    model: ContextModel, sentences: list[Sentence], number: dict[str, int], least: float
) -> bool:
    """Prints the scores by family and part; whether all held-out ones reach `least`."""
    enough = True
    for family in dict.fromkeys(each.family for each in sentences):
        print(family)
        for part in (TRAINING, NEW_WORDS, NEW_ORDER):
            chosen = [each for each in sentences if (each.family, each.part) == (family, part)]
            scores = score(model, chosen, number)
            print(f"  {part}, {len(chosen)} sentences: ", end="")
            print(", ".join(f"{name} {share:.2%}" for name, share in scores.items()))
            enough = enough and (part == TRAINING or min(scores.values()) >= least)
    return enough


def main() -> int:
    """Trains, scores, draws; 0 if enough held-out sentences are right."""
    options = parse_options()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"cannot make the folder --out: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    sentences = all_sentences()
    number = vocabulary(sentences)
    model = ContextModel(len(number), options.width, options.heads)
    training = [sentence for sentence in sentences if sentence.part == TRAINING]
    print(f"{len(sentences)} sentences of {len(number)} words, {len(training)} to train on")
    train(model, Questions.encode(training, number), options)
    enough = report(model, sentences, number, options.least)

    for name, pair in MINIMAL_PAIRS.items():
        draw_rows(model, pair, number, options.out / f"{name}.png")
    draw_apple(model, sentences, number, options.out / "apple_moves.png")
    print(f"saved {len(MINIMAL_PAIRS) + 1} pictures in {options.out}")
    if enough:
        return 0
    print(f"not all held-out shares reach {options.least:.0%}: train longer", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
