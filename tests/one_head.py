"""One head of attention and its derivatives, dense, in NumPy: the mathematics of the oracle.

N queries, M keys. Hidden entries are left out of every sum: inf or NaN there reaches nothing.

Beside results there are sizes. A derivative of a score is a difference of numbers that all but
cancel where a row sees few keys; their own size, not that of what is left, decides how large
rounding errors are. `terms` collects the largest number that is added up for each result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

Arrays = dict[str, ndarray]


@dataclass
class Inputs:
    """What can be differentiated, or a tangent of it: (N, D), (M, D), (M, E), (N, M), (), ()."""

    query: ndarray
    key: ndarray
    value: ndarray
    bias: ndarray
    slopes: ndarray
    sink: ndarray  # -inf: there is none


@dataclass
class Rules:
    """What is not differentiated. Matrices are (N, M)."""

    seen: ndarray  # bool
    distance: ndarray  # |j - i - offset|
    keep: ndarray  # Z of dropout: 0 or 1 / (1 - p)
    factor: float
    softcap: float
    # Beside 16-bit results, the roundings within a product of float32 numbers do not show.
    is_narrow: bool


class Head:
    """The forward, and the derivatives at that point."""

    def __init__(self, x: Inputs, rules: Rules):
        self.x, self.rules = x, rules
        self.terms: dict[str, float] = {}
        cap = rules.softcap
        self.capped = rules.factor * (x.query @ x.key.T)
        # The cap's derivative, and the derivative of that.
        self.slope, self.curvature = np.ones_like(self.capped), np.zeros_like(self.capped)
        if cap < np.inf:
            self.capped = self.hide(cap * np.tanh(self.capped / cap))
            self.slope = 1 - (self.capped / cap) ** 2
            self.curvature = -2 * self.capped / cap**2 * self.slope
            # Capped scores are small beside the products whose sum is capped.
            largest = (abs(x.query).max(0, initial=0) * abs(x.key).max(0, initial=0)).max(initial=0)
            self.term("logsumexp", rules.factor * self.slope.max(initial=0) * largest)
        scores = self.capped + x.bias - x.slopes * rules.distance
        self.weights, self.share, self.lse = softmax(np.where(rules.seen, scores, -np.inf), x.sink)
        self.dropped = self.weights * rules.keep
        self.output = self.by_keys(self.dropped, x.value)

    def gradients(self, go: ndarray, gl: ndarray) -> Arrays:
        """Given gradients of output (N, E) and logsumexp (N)."""
        x, factor, p = self.x, self.rules.factor, self.weights
        self.go, self.gl = go, gl
        self.dp = self.hide((go @ x.value.T) * self.rules.keep)
        self.delta = (go * self.output).sum(-1) - gl
        self.ds = self.hide(p * (self.dp - self.delta[:, None]))
        self.dp_size = self.size(self.dp, (go, x.value), scale=self.rules.keep)
        # What is added up is rounded with the output: in 16 bits, before the sum.
        parts = abs(go * self.output)
        largest = parts.max(-1, initial=0) if self.rules.is_narrow else parts.sum(-1)
        self.delta_size = np.maximum(largest + abs(gl), abs(self.delta))
        self.ds_size = self.hide(p * (self.dp_size + self.delta_size[:, None]))
        self.add_terms("grad", self.ds_size, x.query, x.key)
        ds0 = self.slope * self.ds
        return {
            "grad_query": factor * self.by_keys(ds0, x.key),
            "grad_key": factor * self.by_rows(ds0, x.query),
            "grad_value": self.by_rows(self.dropped, go),
            "grad_scores": self.ds,
            "grad_scores_size": self.ds_size,
            "grad_sink": -self.share * self.delta,
            "grad_sink_size": self.share * self.delta_size,
        }

    def tangents(self, d: Inputs) -> Arrays:
        """Along a direction."""
        x, factor, p = self.x, self.rules.factor, self.weights
        self.ds0_dot = self.hide(factor * (d.query @ x.key.T + x.query @ d.key.T))
        along = self.hide(d.bias - d.slopes * self.rules.distance)
        self.s_dot = self.slope * self.ds0_dot + along
        pairs = (d.query, x.key), (x.query, d.key)
        self.ds0_dot_size = self.size(self.ds0_dot, *pairs, scale=abs(factor))
        self.s_dot_size = self.ds0_dot_size + abs(along)
        self.mu = (p * self.s_dot).sum(-1) + self.share * d.sink
        self.p_dot = self.hide(p * (self.s_dot - self.mu[:, None])) * self.rules.keep
        self.p_dot_size = self.hide(p * (self.s_dot_size + abs(self.mu[:, None])))
        self.p_dot_size *= self.rules.keep
        self.term("logsumexp_tangent", p * self.s_dot_size, self.share * d.sink)
        self.term(
            "output_tangent",
            self.p_dot_size.max(0, initial=0)[:, None] * x.value,
            self.dropped.max(0, initial=0)[:, None] * d.value,
            self.mu[:, None] * self.output,
        )
        return {
            "output_tangent": self.by_keys(self.p_dot, x.value)
            + self.by_keys(self.dropped, d.value),
            "logsumexp_tangent": self.mu,
        }

    def second_order(self, d: Inputs) -> Arrays:
        """Gradients of <go, output tangent> + <gl, logsumexp tangent>, after the two above."""
        x, factor, p, mu = self.x, self.rules.factor, self.weights, self.mu[:, None]
        delta = self.delta[:, None]
        dp_dot = self.hide((self.go @ d.value.T) * self.rules.keep)
        g = self.hide(dp_dot + self.s_dot * (self.dp - delta) - mu * self.dp)
        g_sink = -d.sink * self.delta
        parts = p * dp_dot, p * self.s_dot * self.dp
        epsilon = (p * g).sum(-1) + self.share * g_sink
        t = self.hide(p * (g - epsilon[:, None]))
        t0 = self.slope * t + self.ds * self.ds0_dot * self.curvature

        g_size = self.size(dp_dot, (self.go, d.value), scale=self.rules.keep)
        g_size = (
            g_size
            + self.s_dot_size * (self.dp_size + self.delta_size[:, None])
            + abs(mu) * self.dp_size
        )
        sums = (
            *(x.sum(-1) for x in parts),
            self.delta_size * self.mu,
            self.mu * (p * self.dp).sum(-1),
        )
        epsilon_size = np.max([abs(x) for x in sums], axis=0)
        t_size = self.hide(p * (g_size + epsilon_size[:, None]))
        bend = 2 / self.rules.softcap * self.ds_size * self.ds0_dot_size
        self.add_terms("second", t_size + bend, x.query, x.key)
        self.add_terms("second", self.ds_size, d.query, d.key)
        self.term("second_value", self.p_dot_size.max(1, initial=0)[:, None] * self.go)
        ds0 = self.slope * self.ds
        return {
            "second_query": factor * (self.by_keys(ds0, d.key) + self.by_keys(t0, x.key)),
            "second_key": factor * (self.by_rows(ds0, d.query) + self.by_rows(t0, x.query)),
            "second_value": self.by_rows(self.p_dot, self.go),
            "second_scores": t,
            "second_scores_size": t_size,
            "second_sink": self.share * (g_sink - epsilon),
            "second_sink_size": self.share * (abs(d.sink) * self.delta_size + epsilon_size),
        }

    def hide(self, matrix: ndarray) -> ndarray:
        return np.where(self.rules.seen, matrix, 0)

    def by_keys(self, weights: ndarray, matrix: ndarray) -> ndarray:
        """weights (N, M) @ matrix (M, …)."""
        return product(weights, self.rules.seen, matrix)

    def by_rows(self, weights: ndarray, matrix: ndarray) -> ndarray:
        """weightsᵀ (M, N) @ matrix (N, …)."""
        return product(weights.T, self.rules.seen.T, matrix)

    def size(self, products: ndarray, *pairs: tuple[ndarray, ndarray], scale: Any = 1.0) -> ndarray:
        """The size of what was added up in a sum of products a bᵀ."""
        if self.rules.is_narrow:
            return abs(products)
        return self.hide(sum(abs(narrow(a)) @ abs(narrow(b)).T for a, b in pairs) * scale)

    def add_terms(self, kind: str, sizes: ndarray, query: ndarray, key: ndarray) -> None:
        factor = abs(self.rules.factor)
        self.term(f"{kind}_query", factor * sizes.max(0, initial=0)[:, None] * key)
        self.term(f"{kind}_key", factor * sizes.max(1, initial=0)[:, None] * query)

    def term(self, name: str, *numbers: ndarray) -> None:
        for x in numbers:
            largest = np.max(abs(x), where=np.isfinite(x), initial=self.terms.get(name, 0.0))
            self.terms[name] = float(largest)


def softmax(scores: ndarray, sink: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Weights of scores (N, M), hidden ones -inf, the sink's share (N), and logsumexp (N).

    A row without any score above -inf has weights 0 and logsumexp -inf.
    """
    largest = np.maximum(scores.max(-1, initial=-np.inf), sink)
    largest = np.where(largest == -np.inf, 0, largest)
    exponentials, sinks = np.exp(scores - largest[:, None]), np.exp(sink - largest)
    total = exponentials.sum(-1) + sinks
    divisor = np.where(total == 0, 1, total)
    return exponentials / divisor[:, None], sinks / divisor, largest + np.log(total)


def product(weights: ndarray, visible: ndarray, matrix: ndarray) -> ndarray:
    """weights (N, M) @ matrix (M, D), where hidden entries add nothing, whatever is there."""
    finite = np.isfinite(matrix).all(-1)
    result = weights[:, finite] @ matrix[finite]
    for column in np.flatnonzero(~finite):
        rows = visible[:, column]
        result[rows] += np.outer(weights[rows, column], matrix[column])
    return result


def narrow(x: ndarray) -> ndarray:
    """Sizes need no more than float64."""
    return x.astype(np.float64)
