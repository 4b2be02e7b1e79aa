"""What training shows at its end: agreement with PyTorch's own attention, and pictures."""

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import torch_ext
from model import LanguageModel, cross_entropy


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference between two tensors, and the largest value of the second."""

    name: str
    largest: float
    scale: float

    @classmethod
    def between(cls, name: str, ours: Tensor, theirs: Tensor) -> "Difference":
        """Of two tensors of one shape."""
        return cls(name, (ours - theirs).abs().max().item(), theirs.abs().max().item())


def compare_models(ours: nn.Module, theirs: nn.Module, batch: Tensor) -> list[Difference]:
    """Runs two models with equal weights over `batch`: their logits, then each gradient."""
    logits, gradients = [], []
    for model in (ours, theirs):
        model.zero_grad()
        cross_entropy(model, batch).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        with torch.no_grad():
            logits.append(model(batch[:, :-1]))
    return [Difference.between("logits", *logits)] + [
        Difference.between(name, gradient, gradients[1][name])
        for name, gradient in gradients[0].items()
    ]


def draw_losses(
    training: list[float], held_out: dict[int, float], bigram: float, path: Path
) -> None:
    """Loss in nats per byte after each step: of the training batch, of held-out text."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.plot(range(1, len(training) + 1), training, color="0.75", label="training batch")
    axes.plot(list(held_out), list(held_out.values()), marker="o", label="held-out text")
    axes.axhline(bigram, color="tab:red", linestyle="--", label="bigram, held-out text")
    axes.set(xlabel="step", ylabel="nats per byte", title="Loss of the language model")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_attention(model: LanguageModel, text: Tensor, folder: Path) -> None:
    """A picture for each layer of how the bytes of `text`, (N), attend to each other, by head."""
    tokens = [chr(byte) for byte in text.tolist()]
    for layer, weights in enumerate(model.attention_maps(text[None]), start=1):
        axes = torch_ext.plot_attention(weights[0], tokens, tokens, title=f"layer {layer}")
        axes.figure.savefig(folder / f"attention_layer_{layer}.png", dpi=100)
        plt.close(axes.figure)
