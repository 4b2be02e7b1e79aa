"""Two layers of attention that answer a question about one word of a sentence.

The first layer lets every word look at the others. The second fetches: where it looks is decided
by what the first layer found out, but what it brings back are the words themselves, without
context. So the only way to name the noun that "it" stands for is to look at that noun, and the row
of "it" in the second layer's weights says which noun the model means, although nothing ever told
it to look there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import torch_ext
from sentences import Sentence


@dataclass(frozen=True)
class Questions:
    """S sentences, each with a question about one of its words, as tensors."""

    text: Tensor  # (S, N) word numbers, 0 after the end
    asked: Tensor  # (S) place of the word asked about
    answer: Tensor  # (S) word number
    source: Tensor  # (S) place of the word that gives the answer

    @classmethod
    def encode(cls, sentences: list[Sentence], number: dict[str, int]) -> "Questions":
        """Turns words into numbers."""
        texts = [torch.tensor([number[word] for word in s.words]) for s in sentences]
        return cls(
            text=nn.utils.rnn.pad_sequence(texts, batch_first=True),
            asked=torch.tensor([s.asked for s in sentences]),
            answer=torch.tensor([number[s.answer] for s in sentences]),
            source=torch.tensor([s.source for s in sentences]),
        )


class ContextModel(nn.Module):
    """B sentences of N words -> for one word each, its meaning: a point among the word vectors."""

    def __init__(self, words: int, width: int, heads: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words + 1, width)  # 0 is padding
        nn.init.normal_(self.word.weight, std=width**-0.5)
        self.place = torch_ext.nn.SinusoidalPositionalEncoding(width)
        self.first_norm = nn.LayerNorm(width)
        self.first = torch_ext.nn.MultiheadAttention(width, heads)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.second_norm = nn.LayerNorm(width)
        self.W_Q = nn.Linear(width, width, bias=False)
        self.W_K = nn.Linear(width, width, bias=False)
        self.W_V = nn.Linear(width, width, bias=False)
        self.W_O = nn.Linear(width, width, bias=False)
        # At first a fetched word is just that word. So from the first step on looking at the right
        # noun lowers the loss, and training does not get lost among words that say nothing.
        nn.init.eye_(self.W_V.weight)
        nn.init.eye_(self.W_O.weight)

    def in_context(self, text: Tensor) -> Tensor:
        """(B, N) word numbers -> (B, 1, N, width): words after a look at the others."""
        word = self.word(text)
        x = self.place(word * word.shape[-1] ** 0.5)
        x = x + self.first(self.first_norm(x), key_mask=text != 0)
        x = x + self.network(x)
        return self.second_norm(x)[:, None]

    def forward(self, text: Tensor, asked: Tensor) -> Tensor:
        """(B, N) word numbers and (B) places of the words asked about -> (B, width) meanings."""
        x = self.in_context(text)
        sentence = torch.arange(len(text))
        query = self.W_Q(x[sentence, :, asked])[:, :, None]  # (B, 1, 1, width): one row each
        value = self.W_V(self.word(text))[:, None]
        fetched = torch_ext.attention(query, self.W_K(x), value, mask=self.visible(text, asked))
        return self.word(text[sentence, asked]) + self.W_O(fetched[:, 0, 0])

    def answer(self, meaning: Tensor) -> Tensor:
        """(B, width) meanings -> (B, words + 1) logits: how near each word is."""
        return meaning @ self.word.weight.T * meaning.shape[-1] ** 0.5

    @torch.no_grad()
    def look(self, text: Tensor, asked: Tensor) -> Tensor:
        """(B, N): the row of the word asked about in the second layer's attention weights."""
        x = self.in_context(text)
        query = self.W_Q(x[torch.arange(len(text)), :, asked])[:, :, None]
        weights = torch_ext.attention_weights(query, self.W_K(x), mask=self.visible(text, asked))
        return weights[:, 0, 0]

    def visible(self, text: Tensor, asked: Tensor) -> Tensor:
        """(B, 1, 1, N): a word's meaning is sought in the other words, not in itself or padding."""
        itself = torch.arange(text.shape[1]) == asked[:, None]
        return ((text != 0) & ~itself)[:, None, None]
