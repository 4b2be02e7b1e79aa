"""The numbers of the tutorials that introduce attention, from the operator itself."""

import math

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


def test_weighted_values() -> None:
    # Scores 0 and bias log(share): the weights are the shares, since those sum to 1.
    output = torch_ext.attention(
        torch.zeros(1, 2, dtype=F64), torch.zeros(3, 2, dtype=F64), VALUES, bias=SHARES.log()[None]
    )
    assert_close(output, torch.tensor([[9.34, 1.49]], dtype=F64), rtol=0.0, atol=1e-14)
