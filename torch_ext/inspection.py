"""Looking at attention: the weights themselves, as numbers and as a picture."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from torch_ext._checks import (
    TENSOR,
    TENSOR_OR_NONE,
    check_call,
    check_type,
    described,
    is_scripting,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LABELS = 64  # per axis; longer sequences label every second, third ... token
_MAX_NUMBERS = 12  # numbers are written into the cells up to this many rows and columns


def attention_weights(  # noqa: D417 - the options are described with `attention`
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    window_left: int | None = None,
    window_right: int | None = None,
    bottom_right: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    slopes: Tensor | None = None,
    sink: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """The matrix softmax(scores) that `attention` uses, before dropout, but never stores.

    Costs memory for every row asked for: N x M per head without `rows`. For looking at a model, or
    for a loss on some of its weights; differentiable.

    Args:
        query: (..., H, N, D).
        key: (..., Hkv, M, D).
        rows: int64 indices of the queries wanted, 1-D; no other row is computed. All by default.

    The options, from mask to sink, are those of `attention`.

    Returns:
        (..., H, N, M), or (..., H, len(rows), M). A row sums to 1, with a sink to what it leaves,
        and is 0 where no key is visible.

    Raises:
        RuntimeError, TypeError: naming the argument, what was expected and what came.

    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1.
    """
    if not is_scripting():
        check_call(
            "torch_ext.attention_weights",
            (query, key),
            mask,
            bias,
            is_causal,
            window_left,
            window_right,
            bottom_right,
            scale,
            softcap,
            slopes,
            sink,
        )
        check_type("torch_ext.attention_weights", TENSOR_OR_NONE, "rows", rows)
    weights: Tensor = torch.ops.torch_ext.attention_weights(
        query,
        key,
        mask=mask,
        bias=bias,
        is_causal=is_causal,
        window_left=window_left,
        window_right=window_right,
        bottom_right=bottom_right,
        scale=scale,
        softcap=softcap,
        slopes=slopes,
        sink=sink,
        rows=rows,
    )
    return weights


def plot_attention(
    weights: Tensor,
    query_tokens: Sequence[str],
    key_tokens: Sequence[str],
    *,
    ax: "Axes | None" = None,
    title: str | None = None,
    vmax: float | None = None,
) -> "Axes":
    """Draws weights as a heat map: a row for each query token, a column for each key token.

    Small maps carry their numbers, rounded to hundredths. Several heads are drawn side by side
    with one colour scale.

    Args:
        weights: (N, M), or (H, N, M) for a panel per head; from `attention_weights`.
        query_tokens: N labels, top to bottom.
        key_tokens: M labels, left to right.
        ax: where to draw one panel; a new figure by default.
        title: above the panel, or above the whole grid.
        vmax: weight of the darkest colour; the largest weight by default.

    Returns:
        The Axes of the panel, or of the first one; `.figure` is the picture (`.figure.savefig`).

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: weights is not a tensor, or a label is not a string.
        ValueError: the rank is not 2 or 3, the labels do not match in number, there is nothing to
            draw, or `ax` came with several heads.
    """
    check_type("plot_attention", TENSOR, "weights", weights)
    for name, tokens in (("query_tokens", query_tokens), ("key_tokens", key_tokens)):
        for token in tokens:
            if not isinstance(token, str):
                raise TypeError(
                    f"plot_attention: expected {name} to be strings, but got {described(token)}"
                )
    panels = _checked_panels(weights, len(query_tokens), len(key_tokens))
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"plot_attention: expected weights of one head to draw into ax, but got {len(panels)}"
        )
    rows, columns = [_label(t) for t in query_tokens], [_label(t) for t in key_tokens]
    all_axes = [ax] if ax is not None else _grid(len(panels), rows, columns)
    vmax = (float(panels.nan_to_num().max()) or 1.0) if vmax is None else vmax
    for head, (panel, panel_ax) in enumerate(zip(panels, all_axes, strict=True)):
        image = _draw_panel(panel_ax, panel, rows, columns, vmax)
        if len(panels) > 1:
            panel_ax.set_title(f"head {head}", fontsize=11, fontweight="bold")
    figure: Any = all_axes[0].figure
    figure.colorbar(image, ax=all_axes, label="attention weight", shrink=0.8, pad=0.02)
    if title is not None and len(panels) > 1:
        figure.suptitle(title, parse_math=False)
    elif title is not None:
        all_axes[0].set_title(title, parse_math=False)
    return all_axes[0]


def _checked_panels(weights: Tensor, queries: int, keys: int) -> Tensor:
    """The weights as (H, N, M) on the CPU, float32."""
    if weights.dim() not in (2, 3):
        raise ValueError(
            "plot_attention: expected weights of shape (N, M) or (H, N, M), but got "
            f"{list(weights.shape)}"
        )
    panels = weights.detach().to("cpu", torch.float32)
    panels = panels if panels.dim() == 3 else panels[None]
    if panels.shape[1:] != (queries, keys):
        raise ValueError(
            "plot_attention: expected a query token for each row and a key token for each column "
            f"of weights of shape {list(weights.shape)}, but got {queries} query tokens and "
            f"{keys} key tokens"
        )
    if panels.numel() == 0:
        raise ValueError(
            f"plot_attention: expected weights to draw, but got shape {list(weights.shape)}"
        )
    return panels


def _label(token: str) -> str:
    """The token, with what would be invisible or break the line made visible."""
    if not token.isprintable():
        token = repr(token)[1:-1]
    return token if token.strip() else "\N{OPEN BOX}" * max(len(token), 1)


def _grid(count: int, rows: list[str], columns: list[str]) -> "list[Axes]":
    """A new figure with `count` panels of a size that fits the labels."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "plot_attention: expected matplotlib to be installed; run `pip install matplotlib`"
        ) from error
    across = min(count, math.ceil(math.sqrt(count)) if count > 3 else count)
    down = math.ceil(count / across)
    cell = 0.5 if max(len(rows), len(columns)) <= _MAX_NUMBERS else 0.25
    letters = 0.09 * max(len(label) for label in rows), 0.09 * max(len(label) for label in columns)
    width = min(max(cell * len(columns), 1.5), 10.0) + letters[0] + 0.5
    height = min(max(cell * len(rows), 1.5), 10.0) + letters[1] + 0.5
    _figure, grid = pyplot.subplots(
        down,
        across,
        squeeze=False,
        layout="constrained",
        figsize=(width * across + 1.0, height * down + 0.5),
    )
    every: list[Axes] = list(grid.flat)
    for unused in every[count:]:
        unused.remove()
    return every[:count]


def _draw_panel(ax: "Axes", panel: Tensor, rows: list[str], columns: list[str], vmax: float) -> Any:
    longest, shortest = max(len(rows), len(columns)), min(len(rows), len(columns))
    aspect: Literal["auto", "equal"] = "auto" if longest > 4 * shortest else "equal"
    image = ax.imshow(panel.numpy(), cmap="Blues", vmin=0.0, vmax=vmax, aspect=aspect)
    size = 9 if longest <= 40 else 6
    for axis, labels in ((ax.yaxis, rows), (ax.xaxis, columns)):
        step = math.ceil(len(labels) / _MAX_LABELS)
        axis.set_ticks(range(0, len(labels), step), labels[::step], fontsize=size, parse_math=False)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    if max(len(label) for label in columns) > 2:
        ax.tick_params(axis="x", labelrotation=90)
    ax.tick_params(length=0)
    place = ax.get_subplotspec()
    if place is None or place.is_first_col():  # on the outer edges of a grid only
        ax.set_ylabel("query token")
    if place is None or place.is_first_row():
        ax.set_xlabel("key token it looks at")
    for spine in ax.spines.values():
        spine.set_visible(False)
    if longest <= _MAX_NUMBERS:
        _write_numbers(ax, panel, vmax)
    return image


def _write_numbers(ax: "Axes", panel: Tensor, vmax: float) -> None:
    for i, row in enumerate(panel.tolist()):
        for j, weight in enumerate(row):
            colour = "white" if weight > 0.55 * vmax else "black"
            ax.text(j, i, f"{weight:.2f}", ha="center", va="center", fontsize=8, color=colour)
