"""vmap of the public operators: dropout, what broadcasts within a sample, the compiler, errors."""

from __future__ import annotations

import pytest
import torch
from test_vmap import B, D, E, M, N, assert_equal, loop, random_mapped
from torch import Tensor
from torch.func import grad, jvp, vmap

import torch_ext

# torch.func.jvp scripts decompositions the first time.
pytestmark = [
    pytest.mark.filterwarnings("error", "ignore:.*torch.jit.script:DeprecationWarning"),
    pytest.mark.usefixtures("on_device"),
]

ops = torch.ops.torch_ext

HEADS, KEY_HEADS = 4, 2


@pytest.mark.parametrize("lead", [(), (HEADS,), (2, HEADS)])
@pytest.mark.parametrize("maps_query", [True, False])
def test_dropout_different(lead: tuple[int, ...], maps_query: bool) -> None:
    """Every sample draws its own seed; the query may be the same for all."""
    dims = (0 if maps_query else None, 1, None)
    q, k, v = (
        random_mapped("", (*lead, n, d), dim)
        for (n, d), dim in zip([(N, D), (M, D), (M, E)], dims, strict=True)
    )
    dropped = vmap(lambda *x: ops.attention(*x, dropout_p=0.5), dims, randomness="different")
    torch.manual_seed(5)
    actual = dropped(q, k, v)
    torch.manual_seed(5)
    seeds = torch.randint(2**63 - 1, (B, *lead[:-1]))

    def given(q: Tensor, k: Tensor, v: Tensor, seed: Tensor) -> tuple[Tensor]:
        return (ops.attention(q, k, v, dropout_p=0.5, seed=seed),)

    assert_equal(actual, loop(given, (*dims, 0))(q, k, v, seeds)[0])
    assert seeds.unique().numel() == seeds.numel()


@pytest.mark.parametrize("lead", [(), (HEADS,), (2, HEADS)])
def test_dropout_same(lead: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(*lead, n, d) for n, d in [(N, D), (M, D), (M, E)])
    qs = torch.stack([q, q, torch.randn_like(q)])
    torch.manual_seed(5)
    outputs = vmap(lambda q: ops.attention(q, k, v, dropout_p=0.5), randomness="same")(qs)
    torch.manual_seed(5)
    assert_equal(outputs[0], ops.attention(q, k, v, dropout_p=0.5))
    assert_equal(outputs[1], outputs[0])
    assert not torch.equal(outputs[2], outputs[0])


def test_dropout_error() -> None:
    q = torch.randn(B, HEADS, N, D)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda q: ops.attention(q, q, q, dropout_p=0.5))(q)
    seed = torch.tensor(3)  # nothing is drawn
    vmap(lambda q: ops.attention(q, q, q, dropout_p=0.5, seed=seed))(q)


def test_gradients_see_the_weights_of_the_output() -> None:
    """Attention is linear in value, with the weights that dropout left as its derivative."""
    q, k, v = torch.randn(B, HEADS, N, D), torch.randn(HEADS, M, D), torch.randn(HEADS, M, E)

    def outputs(q: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(lambda v: ops.attention(q, k, v, dropout_p=0.5), (v,), (v,))

    output, tangent = vmap(outputs, randomness="different")(q)
    torch.testing.assert_close(tangent, output)


def test_composites() -> None:
    """Batch dimensions broadcast against each other within a sample; whole rows; chosen rows."""
    q, k = torch.randn(B, 2, HEADS, N, D), torch.randn(1, KEY_HEADS, M, D, B)
    v, rows = torch.randn(M, E), torch.tensor([[0, 2], [1, 1], [4, 3]])

    def output(q: Tensor, k: Tensor) -> tuple[Tensor]:
        return (torch_ext.attention(q, k[:, :1], v, is_causal=True),)

    def weights(q: Tensor, k: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        some = ops.attention_weights(q, k, is_causal=True, rows=rows)
        return ops.attention_weights(q, k, is_causal=True), some

    assert_equal(vmap(output, (0, -1))(q, k), loop(output, (0, -1))(q, k))
    expected = loop(weights, (0, -1, 0))(q, k, rows)
    torch.testing.assert_close(vmap(weights, (0, -1, 0))(q, k, rows), expected)


def test_compiled(fresh_dynamo: None) -> None:
    def loss(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        return ops.attention(q, k, k, bias=bias).sin().sum()

    tensors = [torch.randn(B, HEADS, N, D), torch.randn(KEY_HEADS, M, D), torch.randn(N, M)]
    function = vmap(grad(loss, (0, 1, 2)), (0, None, None))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(*tensors), function(*tensors))


# ---- Errors --------------------------------------------------------------------------------------


def test_errors_show_shapes_of_a_sample() -> None:
    q, k = torch.randn(B, HEADS, N, D), torch.randn(B, HEADS, M, D + 1)
    with pytest.raises(RuntimeError, match=r"key of shape \[4, 6, 5\]"):
        vmap(lambda q, k: ops.attention_forward(q, k, k))(q, k)


def test_too_many_dimensions() -> None:
    q = torch.randn(*(1,) * 16, N, D)
    assert ops.attention_forward(q, q, q)[0].shape == q.shape
    with pytest.raises(RuntimeError, match="at most 16 dimensions before the last two"):
        vmap(lambda x: ops.attention_forward(x, q, q))(q[None])
