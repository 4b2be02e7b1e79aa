"""attention_weights: exact, row by row. plot_attention: what is in the picture."""

import sys

import pytest
import torch
from torch.testing import assert_close

import torch_ext

NEAR = {"rtol": 1e-9, "atol": 1e-12}

on_device = pytest.mark.usefixtures("on_device")


@on_device
def test_weights_are_the_softmax_of_the_scores() -> None:
    query = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    key = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    mask = torch.rand(2, 1, 5, 7) > 0.3
    mask[..., 0] = True
    bias = torch.randn(4, 5, 7, dtype=torch.float64)
    weights = torch_ext.attention_weights(
        query, key, mask=mask, bias=bias, is_causal=True, scale=0.4
    )
    for b in range(2):
        for h in range(4):
            scores = 0.4 * query[b, h] @ key[b, h // 2].T + bias[h]
            hidden = ~mask[b, 0] | (torch.arange(7) > torch.arange(5)[:, None])
            expected = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
            assert_close(weights[b, h], expected, **NEAR)


@on_device
def test_weights_are_those_of_attention() -> None:
    query, key, value = (torch.randn(2, 3, 6, 4, dtype=torch.float64) for _ in range(3))
    weights = torch_ext.attention_weights(query, key, is_causal=True)
    assert_close(weights @ value, torch_ext.attention(query, key, value, is_causal=True), **NEAR)


@on_device
def test_row_that_sees_no_key_is_zero() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    weights = torch_ext.attention_weights(torch.randn(2, 4), torch.randn(2, 4), mask=mask)
    assert weights.tolist() == [[1.0, 0.0], [0.0, 0.0]]


@on_device
def test_a_sink_takes_its_share_of_a_row() -> None:
    query, key = torch.zeros(2, 4), torch.zeros(3, 4)
    weights = torch_ext.attention_weights(query, key, sink=torch.tensor(0.0), is_causal=True)
    expected = torch.tensor([[1 / 2, 0, 0], [1 / 3, 1 / 3, 0]])
    assert_close(weights, expected)


@on_device
@pytest.mark.parametrize("rows", [[0], [3, 1], [5, 5, 2], []])
def test_rows_are_rows_of_the_whole(rows: list[int]) -> None:
    query = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    key = torch.randn(2, 3, 8, 4, dtype=torch.float64)
    options = {
        "mask": torch.rand(2, 1, 6, 8) > 0.2,
        "bias": torch.randn(3, 6, 8, dtype=torch.float64),
        "is_causal": True,
        "window_left": 3,
        "bottom_right": True,
        "scale": 0.9,
        "softcap": 2.0,
        "slopes": torch.rand(3, dtype=torch.float64),
        "sink": torch.rand(3, dtype=torch.float64),
    }
    whole = torch_ext.attention_weights(query, key, **options)
    chosen = torch_ext.attention_weights(query, key, rows=torch.tensor(rows).long(), **options)
    assert chosen.shape == (2, 3, len(rows), 8)
    assert_close(chosen, whole[:, :, rows], **NEAR)


@on_device
def test_rows_that_were_not_asked_for_have_no_gradient() -> None:
    query = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    key = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)

    def chosen(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return torch_ext.attention_weights(query, key, rows=torch.tensor([4, 1]))

    assert torch.autograd.gradcheck(chosen, (query, key))
    chosen(query, key).square().sum().backward()
    assert query.grad[[0, 2, 3, 5]].eq(0).all()
    assert query.grad[[1, 4]].ne(0).all()


def test_rows_out_of_range_are_refused() -> None:
    query, key = torch.randn(6, 4), torch.randn(7, 4)
    for rows in ([6], [-7]):
        with pytest.raises(RuntimeError, match=f"rows.*less than 6, but got {rows[0]}"):
            torch_ext.attention_weights(query, key, rows=torch.tensor(rows))


WORDS = ["the", "animal", "was", "too", "tired"]


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def tick_labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_plot_shows_labels_and_weights(pyplot, tmp_path) -> None:
    weights = torch.softmax(torch.randn(2, 5), -1).requires_grad_()
    ax = torch_ext.plot_attention(weights, ["it", "was"], WORDS, title="where it looks")
    assert tick_labels(ax.yaxis) == ["it", "was"]
    assert tick_labels(ax.xaxis) == WORDS
    assert ax.get_title() == "where it looks"
    (image,) = ax.get_images()
    assert_close(torch.from_numpy(image.get_array().data), weights.detach())
    assert image.get_clim() == (0.0, pytest.approx(weights.max().item()))
    written = [text.get_text() for text in ax.texts]
    assert written == [f"{w:.2f}" for w in weights.flatten().tolist()]
    ax.figure.savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_plot_keeps_first_row_on_top_and_first_key_left(pyplot) -> None:
    ax = torch_ext.plot_attention(torch.eye(3), list("abc"), list("xyz"))
    bottom, top = ax.get_ylim()
    left, right = ax.get_xlim()
    assert bottom > top
    assert left < right


def test_plot_draws_a_panel_for_each_head_with_one_colour_scale(pyplot) -> None:
    weights = torch.softmax(3 * torch.randn(5, 5, 5), -1)
    first = torch_ext.plot_attention(weights, WORDS, WORDS, title="five heads")
    panels = [ax for ax in first.figure.axes if ax.get_images()]
    assert [ax.get_title() for ax in panels] == [f"head {h}" for h in range(5)]
    assert panels[0] is first
    for panel, expected in zip(panels, weights, strict=True):
        (image,) = panel.get_images()
        assert_close(torch.from_numpy(image.get_array().data), expected)
        assert image.get_clim() == (0.0, pytest.approx(weights.max().item()))
    assert first.figure.get_suptitle() == "five heads"


def test_plot_draws_into_given_axes(pyplot) -> None:
    _, (left, right) = pyplot.subplots(1, 2)
    assert torch_ext.plot_attention(torch.eye(2), ["a", "b"], ["a", "b"], ax=right) is right
    assert len(right.get_images()) == 1
    assert not left.get_images()


def test_plot_makes_odd_tokens_visible(pyplot) -> None:
    tokens = [" ", "\n", "", "a\tb", "$x_1$", " the"]
    ax = torch_ext.plot_attention(torch.eye(6), tokens, tokens)
    expected = ["\N{OPEN BOX}", "\\n", "\N{OPEN BOX}", "a\\tb", "$x_1$", " the"]
    assert tick_labels(ax.xaxis) == expected
    ax.figure.canvas.draw()  # "$" must not start a formula


def test_plot_of_many_tokens_thins_its_labels(pyplot) -> None:
    count = 200
    tokens = [str(i) for i in range(count)]
    ax = torch_ext.plot_attention(torch.rand(count, count), tokens, tokens)
    labels = tick_labels(ax.xaxis)
    assert len(labels) <= 64
    for label, place in zip(labels, ax.get_xticks(), strict=True):
        assert label == tokens[int(place)]
    assert not ax.texts


def test_plot_of_nothing_attended_to(pyplot) -> None:
    ax = torch_ext.plot_attention(torch.zeros(2, 2), ["a", "b"], ["a", "b"])
    ax.figure.canvas.draw()
    assert ax.get_images()[0].get_clim() == (0.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "queries", "keys", "message"),
    [
        ((3,), 1, 3, r"shape \(N, M\) or \(H, N, M\), but got \[3\]"),
        ((1, 2, 3, 3), 3, 3, r"but got \[1, 2, 3, 3\]"),
        ((3, 4), 2, 4, "2 query tokens"),
        ((3, 4), 3, 3, "3 key tokens"),
        ((0, 4), 0, 4, r"weights to draw, but got shape \[0, 4\]"),
    ],
)
def test_plot_refuses_what_does_not_fit(
    pyplot, shape: tuple[int, ...], queries: int, keys: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        torch_ext.plot_attention(torch.zeros(shape), ["q"] * queries, ["k"] * keys)


def test_plot_refuses_several_heads_in_one_axes(pyplot) -> None:
    _, ax = pyplot.subplots()
    with pytest.raises(ValueError, match=r"one head.*got 2"):
        torch_ext.plot_attention(torch.zeros(2, 1, 1), ["q"], ["k"], ax=ax)


def test_plot_without_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ImportError, match="`pip install matplotlib`"):
        torch_ext.plot_attention(torch.eye(2), ["a", "b"], ["a", "b"])
