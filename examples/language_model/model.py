"""A byte-level language model: embedding, blocks of causal attention and a small network, logits.

Every shape below is written with B sequences, N bytes, H heads, D = width / H.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_ext
from data import BYTES, as_tensor


class CausalSelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D) + causal mask) V W_O with Q = x W_Q, K = x W_K, V = x W_V."""

    def __init__(self, width: int, heads: int, attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.heads = heads
        self.W_Q = nn.Linear(width, width, bias=False)
        self.W_K = nn.Linear(width, width, bias=False)
        self.W_V = nn.Linear(width, width, bias=False)
        self.W_O = nn.Linear(width, width, bias=False)
        self.rotate = torch_ext.nn.RotaryEmbedding(width // heads)
        self.attention = attention

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, H * D) -> (B, H, N, D), a view."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def query_and_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, width) -> two of (B, H, N, D), which know their positions by rotation."""
        query = self.rotate(self.split_heads(self.W_Q(x)))
        key = self.rotate(self.split_heads(self.W_K(x)))
        return query, key

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        query, key = self.query_and_key(x)
        value = self.split_heads(self.W_V(x))
        output = self.attention(query, key, value, is_causal=True)
        return self.W_O(output.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x))."""

    def __init__(self, width: int, heads: int, attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, attention)
        self.network_norm = nn.LayerNorm(width)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.network(self.network_norm(x))


class LanguageModel(nn.Module):
    """Bytes in, logits of the next byte out. Scripts, so that it also runs and trains from C++.

    Args:
        context: the longest sequence the model is trained on, in bytes.
        attention: takes query, key, value and is_causal, as F.scaled_dot_product_attention does.
    """

    def __init__(
        self,
        *,
        context: int,
        width: int,
        heads: int,
        layers: int,
        attention: Callable[..., Tensor] = torch_ext.attention,
    ) -> None:
        super().__init__()
        self.context = context  # generate.cpp reads it
        self.embedding = nn.Embedding(BYTES, width)
        self.blocks = nn.ModuleList(Block(width, heads, attention) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, BYTES, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.logits.weight)

    def forward(self, text: Tensor) -> Tensor:
        """(B, N) int64 bytes -> (B, N, 256) logits; those at n predict byte n + 1."""
        x = self.embedding(text)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.norm(x))

    @torch.jit.unused
    @torch.no_grad()
    def attention_maps(self, text: Tensor) -> list[Tensor]:
        """(B, N) bytes -> for each layer its attention weights (B, H, N, N)."""
        maps = []
        x = self.embedding(text)
        for block in self.blocks:
            query, key = block.attention.query_and_key(block.attention_norm(x))
            maps.append(torch_ext.attention_weights(query, key, is_causal=True))
            x = block(x)
        return maps


def cross_entropy(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean loss in nats per byte over windows (B, N + 1): bytes 0..N-1 predict bytes 1..N."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: str,
    *,
    count: int,
    temperature: float,
    generator: torch.Generator,
) -> str:
    """The prompt followed by `count` bytes drawn from the model one after another."""
    text = as_tensor(os.fsencode(prompt)).long()[None]
    for _ in range(count):
        logits = model(text[:, -model.context :])[:, -1]
        probability = (logits / temperature).softmax(-1)
        text = torch.cat([text, torch.multinomial(probability, 1, generator=generator)], dim=1)
    return bytes(text[0].tolist()).decode(errors="replace")
