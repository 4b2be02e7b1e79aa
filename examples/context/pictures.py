"""Pictures of where a word looks, and of how its meaning moves."""

from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F

import torch_ext
from network import ContextModel, Questions
from sentences import TRAINING, Sentence

# Sentences whose words never meet in training, by the name of their picture.
MINIMAL_PAIRS = {
    "it_tired_or_wide": (
        "the animal did not cross the street because it was too tired",
        "the animal did not cross the street because it was too wide",
    ),
    "it_in_another_order": (
        "because it was too tired the street was not crossed by the animal",
        "because it was too wide the street was not crossed by the animal",
    ),
    "it_slow_or_fast": (
        "the wolf did not catch the dog because it was too slow",
        "the wolf did not catch the dog because it was too fast",
    ),
    "apple_phones_or_juice": ("i love apple phones", "i love apple juice"),
    "apple_between": (
        "next to the computers i sell apple cakes",
        "next to the computers i sell apple watches",
    ),
}


def draw_rows(
    model: ContextModel, pair: tuple[str, str], number: dict[str, int], path: Path
) -> None:
    """The rows of "it" or "apple" in a minimal pair, one above the other."""
    words = [sentence.split() for sentence in pair]
    asked = "it" if "it" in words[0] else "apple"
    text = torch.tensor([[number[word] for word in sentence] for sentence in words])
    look = model.look(text, torch.full((2,), words[0].index(asked)))
    ends = [
        next(a for a, b in zip(mine, other, strict=True) if a != b)
        for mine, other in (words, words[::-1])
    ]
    columns = [a if a == b else f"{a} / {b}" for a, b in zip(*words, strict=True)]
    rows = [f"{asked} ({end})" for end in ends]
    axes = torch_ext.plot_attention(look, rows, columns, vmax=1.0)
    axes.figure.savefig(path, dpi=120)
    plt.close(axes.figure)


@torch.no_grad()
def draw_apple(
    model: ContextModel, sentences: list[Sentence], number: dict[str, int], path: Path
) -> None:
    """Where "apple" stands between fruit and technology: alone, and in held-out sentences."""
    chosen = [s for s in sentences if s.words[s.asked] == "apple" and s.part != TRAINING]
    questions = Questions.encode(chosen, number)
    meaning = model(questions.text, questions.asked)
    senses = model.word.weight[[number["fruit"], number["technology"]]]
    alone = F.cosine_similarity(model.word.weight[number["apple"]], senses, dim=-1)
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    for answer, colour in (("fruit", "tab:green"), ("technology", "tab:blue")):
        near = F.cosine_similarity(
            meaning[questions.answer == number[answer], None], senses, dim=-1
        )
        axes.scatter(near[:, 0], near[:, 1], s=8, color=colour, label=f"apple as {answer}")
        axes.annotate(
            "",
            near.mean(0).tolist(),  # from alone to there
            alone.tolist(),
            arrowprops={"arrowstyle": "->", "color": "black"},
            zorder=3,
        )
    axes.scatter(alone[0], alone[1], marker="*", s=150, color="tab:red", label="apple alone")
    axes.set(
        xlabel="cosine with fruit",
        ylabel="cosine with technology",
        title="What the neighbours make of apple, held-out sentences",
    )
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
