"""Trains on small sentences until context decides what a word means, and draws where it looks.

    python examples/context/train.py

"The animal did not cross the street because it was too tired": only the answer, animal, is trained
on, never the attention. On sentences whose nouns never met in training, or not in that order, the
model must then answer right, and the row of "it" must put its largest weight on the right noun, in
at least --least of them; the exit status is 1 otherwise. Pictures go into the folder --out.
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


def parse_options() -> argparse.Namespace:
    """Every number there is to choose."""
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
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--least", type=float, default=0.99, help="share of held-out sentences to get right")
    add("--seed", type=int, default=0, help="of weights and batches")
    add("--threads", type=int, default=1, help="processor cores to use; the tensors are small")
    return parser.parse_args()


def train(model: ContextModel, questions: Questions, options: argparse.Namespace) -> None:
    """Minimises the cross-entropy of the answers, and of nothing else."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.steps, pct_start=0.1
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
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    sentences = all_sentences()
    number = vocabulary(sentences)
    model = ContextModel(len(number), options.width, options.heads)
    training = [sentence for sentence in sentences if sentence.part == TRAINING]
    print(f"{len(sentences)} sentences of {len(number)} words, {len(training)} to train on")
    train(model, Questions.encode(training, number), options)
    enough = report(model, sentences, number, options.least)

    options.out.mkdir(parents=True, exist_ok=True)
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
