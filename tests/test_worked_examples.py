"""The numbers of the tutorials that introduce attention, from the operator itself."""

import math

import pytest
import torch
from torch.testing import assert_close

import torch_ext

F64 = torch.float64

# "love", "Apple", "phones": X, W_Q, W_K, and the table of scores they give.
X = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]], dtype=F64)
W_Q = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)
W_K = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=F64)
SCORES = torch.tensor([[1.0, 1.0, 0.0], [2.0, 3.0, 2.0], [2.0, 4.0, 4.0]], dtype=F64)
WEIGHTS_OF_APPLE = torch.tensor([0.2482551, 0.5034898, 0.2482551], dtype=F64)

# "cat", "milk", "hungry": values and the share of each.
VALUES = torch.tensor([[10.0, 2.0], [1.0, 8.0], [9.0, 1.0]], dtype=F64)
SHARES = torch.tensor([0.42, 0.01, 0.57], dtype=F64)

TIGHT = {"rtol": 0.0, "atol": 6e-8}  # the weights are given to seven decimals


def test_softmax_of_three_scores() -> None:
    scores = torch.tensor([[1.0], [3.0], [6.0]], dtype=F64)
    one = torch.ones(1, 1, dtype=F64)
    weights = torch_ext.attention_weights(one, scores, scale=1.0)
    expected = torch.tensor([[0.0063775, 0.0471234, 0.9464991]], dtype=F64)
    assert_close(weights, expected, **TIGHT)
    assert_close(
        torch_ext.attention(one, scores, torch.eye(3, dtype=F64), scale=1.0), expected, **TIGHT
    )
    assert 0.0 < weights[0, 0] < weights[0, 1] < weights[0, 2]


def test_tiny_self_attention_has_the_table_of_scores() -> None:
    # With scale 1 and all keys visible, score = log of the weight + logsumexp of the row.
    query, key = X @ W_Q, X @ W_K
    weights = torch_ext.attention_weights(query, key, scale=1.0)
    _, logsumexp = torch_ext.attention_with_logsumexp(query, key, X, scale=1.0)
    assert_close(weights.log() + logsumexp[:, None], SCORES, rtol=0.0, atol=1e-14)


def test_tiny_self_attention_of_apple() -> None:
    weights = torch_ext.attention_weights(X @ W_Q, X @ W_K)  # the default scale is 1/sqrt(2)
    assert_close(weights[1], WEIGHTS_OF_APPLE, **TIGHT)
    assert [round(w, 1) for w in weights[1].tolist()] == [0.2, 0.5, 0.2]
    assert_close(weights.sum(-1), torch.ones(3, dtype=F64), rtol=0.0, atol=1e-15)
    explicit = torch_ext.attention_weights(X @ W_Q, X @ W_K, scale=1 / math.sqrt(2))
    assert_close(weights, explicit, rtol=0.0, atol=0.0)


def test_tiny_self_attention_mixes_values_by_its_weights() -> None:
    output = torch_ext.attention(X @ W_Q, X @ W_K, torch.eye(3, dtype=F64))
    assert_close(output[1], WEIGHTS_OF_APPLE, **TIGHT)


def row_of_apple(**options: object) -> list[float]:
    """The weights of "Apple", whose scores are 2, 3, 2, at scale 1."""
    weights = torch_ext.attention_weights(X @ W_Q, X @ W_K, scale=1.0, **options)
    row: list[float] = weights[1].tolist()
    return row


def shares(*scores: float) -> list[float]:
    """exp(score) over the sum of them all."""
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def test_options_change_the_row_of_apple() -> None:
    def approx(values: list[float]) -> object:
        return pytest.approx(values, abs=1e-12)

    assert row_of_apple() == approx(shares(2, 3, 2))
    assert row_of_apple(is_causal=True) == approx([*shares(2, 3), 0])
    assert row_of_apple(window_left=0) == approx([0, *shares(3, 2)])
    assert row_of_apple(window_left=0, window_right=0) == [0, 1, 0]
    # The neighbours lie at distance 1 and lose half a point each.
    slope = torch.tensor(0.5, dtype=F64)
    assert row_of_apple(slopes=slope) == approx(shares(1.5, 3, 1.5))
    capped = [4 * math.tanh(score / 4) for score in (2, 3, 2)]
    assert row_of_apple(softcap=4.0) == approx(shares(*capped))
    # A sink of score 1 takes its share and gives nothing.
    sink = torch.tensor(1.0, dtype=F64)
    assert row_of_apple(sink=sink) == approx(shares(2, 3, 2, 1)[:3])


def test_two_new_words_beside_cached_ones() -> None:
    # Of four words the last two ask. bottom_right: they are words 2 and 3, not 0 and 1.
    query, key = torch.zeros(2, 2, dtype=F64), torch.zeros(4, 2, dtype=F64)
    weights = torch_ext.attention_weights(query, key, is_causal=True, bottom_right=True)
    assert weights.tolist() == [[pytest.approx(1 / 3)] * 3 + [0.0], [0.25] * 4]
    weights = torch_ext.attention_weights(query, key, is_causal=True)
    assert weights.tolist() == [[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]


def test_weighted_values() -> None:
    # Scores 0 and bias log(share): the weights are the shares, since those sum to 1.
    output = torch_ext.attention(
        torch.zeros(1, 2, dtype=F64), torch.zeros(3, 2, dtype=F64), VALUES, bias=SHARES.log()[None]
    )
    assert_close(output, torch.tensor([[9.34, 1.49]], dtype=F64), rtol=0.0, atol=1e-14)
