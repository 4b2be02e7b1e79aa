// The weights of a tile again, from what the forward kept of each row, and the direction's share of
// a tile of scores: what backward, tangent and second order have in common.
#pragma once

#include "cpu/kernels/tile/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// x, but 0 where the additive tile hides: the factors of a hidden weight may be inf or NaN.
template <bool kAdditive, class T>
TORCH_EXT_INLINE Vec<T> unless_hidden(Vec<T> additive, Vec<T> x) {
  return kAdditive ? if_equal(additive, Vec<T>::fill(-kInfinity<T>), Vec<T>::fill(0), x) : x;
}

// p = exp((s - lse) - residual), 0 where hidden, also in rows whose lse is inf or NaN. `u` receives
// tanh(c q k / softcap) where capped.
template <bool kAdditive, bool kCapped, class T>
TORCH_EXT_INLINE Vec<T> weight(const ScoreRule<T>& rule, Vec<T> product, Vec<T> additive,
                               Vec<T> lse, Vec<T> residual, Vec<T>* u) {
  const Vec<T> s = rule.template score<kAdditive, kCapped>(product, additive, u);
  // No weight is above 1.
  return unless_hidden<kAdditive>(additive, exp_without_overflow((s - lse) - residual));
}

// lse and residual (width) of a tile of queries, as the forward wrote them; 0 beyond `queries`.
template <class T, class P>
void load_row_statistics(const P& p, const TileRange& t, T* lse, T* residual) {
  const int64_t lse_offset = head_offset(p, p.logsumexp, t.head);
  const int64_t residual_offset = head_offset(p, p.logsumexp_residual, t.head);
  for (int64_t i = 0; i < t.width; ++i) {
    const bool inside = i < t.queries;
    lse[i] = inside ? row_value<T>(p.logsumexp, lse_offset, t.query + i) : T(0);
    residual[i] = inside ? row_value<T>(p.logsumexp_residual, residual_offset, t.query + i) : T(0);
    // In an empty row every entry is hidden: exp(-inf - 0) = 0.
    if (lse[i] == -kInfinity<T>) lse[i] = 0;
  }
}

// delta -= dlse
template <class T>
void subtract_logsumexp_gradient(const BackwardProblem& p, const TileRange& t, T* delta) {
  if (!p.grad_logsumexp) return;
  const int64_t offset = head_offset(p, p.grad_logsumexp, t.head);
  for (int64_t i = 0; i < t.queries; ++i)
    delta[i] -= row_value<T>(p.grad_logsumexp, offset, t.query + i);
}

// delta = rowsum(do o) - dlse (width), from do and o transposed, in the same chains as dp^T = v
// do^T: where a row sees one key, o = v and dp - delta is exactly 0. `dO` is null where grad_output
// is absent; `o` holds a chain of o transposed, (kChain, width), of spare memory.
template <class E>
void row_deltas(const BackwardProblem& p, const TileRange& t, const E* dO, E* o, SumOf<E>* delta) {
  using V = Vec<SumOf<E>>;
  constexpr int64_t kSteps = kChain / kTerms<E>;
  fill_zero(delta, t.width);
  for (int64_t begin = 0; dO && begin < p.value_head_size; begin += kChain) {
    const int64_t terms = smaller(kChain, p.value_head_size - begin);
    pack_transposed<E>(p.output, head_offset(p, p.output, t.head) + begin * p.output.col_stride,
                       t.query, t.queries, terms, o, t.width);
    for (int64_t i = 0; i < t.width; i += V::kSize) {
      V chain = V::fill(0);
      // A row that sees nothing has o = 0: what do holds there, inf and NaN included, is no matter.
      for (int64_t e = 0; e < elements<E>(terms); ++e)
        chain = fma_unless_zero(Vec<E>::load(dO + e * t.width + i),
                                Vec<E>::load(o + e * t.width + i), chain);
      (V::load(delta + i) + chain).store(delta + i);
    }
    dO += kSteps * t.width;
  }
  subtract_logsumexp_gradient(p, t, delta);
}

// The sink with logit a as a key of its own: its weights exp((a - lse) - residual).
template <class T>
TORCH_EXT_INLINE Vec<T> sink_weight(T a, const T* lse, const T* residual) {
  return exp((Vec<T>::fill(a) - Vec<T>::load(lse)) - Vec<T>::load(residual));
}

// What a direction adds to the scores of a tile after softcap: b' - slope' |distance|; 0 unless it
// has either.
TORCH_EXT_INLINE bool adds_to_scores(const Direction& direction) {
  return direction.bias || direction.slopes;
}
template <class T>
void direction_tile(const Problem& p, const Direction& direction, const TileRange& t, T* b_dot) {
  if (direction.bias) pack_additive(direction.bias, p, t, b_dot);
  for (int64_t j = 0; j < t.keys; ++j)
    for (int64_t i = t.queries; i < t.width; ++i) b_dot[j * t.width + i] = 0;
  if (direction.slopes)
    subtract_slope(p, t, head_value<T>(p, direction.slopes, t.head), !direction.bias, b_dot);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
