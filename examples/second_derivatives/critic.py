"""A critic that measures how far apart two kinds of signals are, and needs second derivatives.

Signals of the one kind are noise, those of the other kind are noise plus a hidden wave. A function
of the signal whose gradient has norm 1 everywhere and whose mean differs most between the two kinds
differs by the Wasserstein distance (Kantorovich and Rubinstein 1958), which is known here: the norm
of the wave. And its gradient has the shape of the wave. So the critic is trained on

    -(mean over waves - mean over noise) + penalty * (|gradient of the critic at x| - 1)^2,

the loss of Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", at points x between
signals of both kinds: to follow it, the gradient must be differentiated once more.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import torch_ext

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa_math(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's attention as matmul, softmax, matmul: its only path with second derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value)


ATTENTIONS: dict[str, Attention] = {"torch_ext": torch_ext.attention, "SDPA math": sdpa_math}


@dataclass(frozen=True)
class Settings:
    """What both runs share."""

    length: int  # of a signal, N
    width: int  # of the vector that stands for one sample of a signal
    heads: int
    batch: int  # signals of each kind in a step
    steps: int
    learning_rate: float
    penalty: float
    distance: float  # norm of the hidden wave
    products: int  # Hessian-vector products
    seed: int
    show_progress: bool = True

    def wave(self) -> Tensor:
        """(N): nine oscillations under a bell, of norm `distance`."""
        t = torch.linspace(0, 1, self.length)
        wave = torch.exp(-(((t - 0.6) / 0.08) ** 2)) * torch.sin(2 * math.pi * 9 * t)
        return wave * (self.distance / wave.norm())

    def signals(self) -> tuple[Tensor, Tensor]:
        """Noise, and noise with a wave: (B, N) each."""
        noise = 0.3 * torch.randn(2, self.batch, self.length)
        return noise[0], noise[1] + self.wave()


class Critic(nn.Module):
    """B signals of N samples -> B numbers.

    Without attention the gradient would be the same in all places: only attention knows where.
    """

    def __init__(self, settings: Settings, attention: Attention) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.attention = settings.heads, attention
        self.lift = nn.Linear(1, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.read = nn.Linear(width, 1)
        turn = torch.linspace(0, 2 * math.pi, settings.length)
        angle = turn[:, None] * torch.arange(1, width // 2 + 1)
        self.register_buffer("place", torch.cat((angle.sin(), angle.cos()), -1))

    def forward(self, signal: Tensor) -> Tensor:
        """(B, N) -> (B)."""
        x = self.lift(signal[..., None]) + self.place
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        x = x + self.out(self.attention(q, k, v).transpose(1, 2).flatten(2))
        return self.read(x).sum((1, 2)) / signal.shape[-1] ** 0.5


@dataclass
class Report:
    """What a run found, and what it cost."""

    curves: dict[str, list[float]]
    derivative: np.ndarray | None = None  # by all weights, where both runs have the same weights
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mib: float = 0.0  # at the worst moment, beyond what the process held before


def train(settings: Settings, name: str) -> Report:
    """Trains a critic with the attention of that name."""
    torch.manual_seed(settings.seed)
    critic = Critic(settings, ATTENTIONS[name])
    optimizer = torch.optim.Adam(critic.parameters(), settings.learning_rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps
    )
    report = Report(curves={"difference": [], "norm": []})
    gradients = torch.zeros(settings.length)
    for step in progress(settings, settings.steps, f"training, {name}"):
        noise, wave = settings.signals()
        share = torch.rand(settings.batch, 1)
        between = (share * noise + (1 - share) * wave).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        norm = gradient.norm(dim=-1)
        difference = (critic(wave) - critic(noise)).mean()
        loss = settings.penalty * (norm - 1).square().mean() - difference
        optimizer.zero_grad()
        loss.backward()
        if report.derivative is None:
            report.derivative = flat([weight.grad for weight in critic.parameters()])
        optimizer.step()
        schedule.step()
        report.curves["difference"].append(difference.item())
        report.curves["norm"].append(norm.mean().item())
        if step >= settings.steps - settings.steps // 10:  # the last tenth
            gradients += gradient.detach().sum(0)
    report.curves["gradient"] = (gradients / (settings.steps // 10 * settings.batch)).tolist()
    report.weights = {name: weight.detach().numpy() for name, weight in critic.named_parameters()}
    return report


def curvature(settings: Settings, name: str, weights: dict[str, np.ndarray]) -> Report:
    """The difference's largest curvature along any direction of the weights: power iteration.

    The Hessian is never formed. Its product with a direction is the tangent of the gradient along
    that direction: forward over reverse.
    """
    torch.manual_seed(settings.seed)
    critic = Critic(settings, ATTENTIONS[name])
    noise, wave = settings.signals()

    def difference(weights: dict[str, Tensor]) -> Tensor:
        both = torch.func.functional_call(critic, weights, (torch.cat((wave, noise)),))
        return (both[: settings.batch] - both[settings.batch :]).mean()

    point = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    direction = {name: torch.randn_like(weight) for name, weight in point.items()}
    report = Report(curves={"curvature": []})
    for _ in progress(settings, settings.products, f"curvature, {name}"):
        length = math.sqrt(sum(x.square().sum().item() for x in direction.values()))
        direction = {name: x / length for name, x in direction.items()}
        _, product = torch.func.jvp(torch.func.grad(difference), (point,), (direction,))
        along = sum((product[name] * x).sum().item() for name, x in direction.items())
        report.curves["curvature"].append(along)
        direction = product
    report.derivative = flat(list(direction.values()))
    return report


def progress(settings: Settings, count: int, text: str) -> Iterable[int]:
    """Counts, and shows how far it is."""
    return tqdm(range(count), desc=text, disable=not settings.show_progress)


def flat(tensors: list[Tensor]) -> np.ndarray:
    """All numbers in a row."""
    return torch.cat([x.detach().flatten() for x in tensors]).numpy()
