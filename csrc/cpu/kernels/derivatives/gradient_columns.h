// From the products of a tile of the backward or the second order to what multiplies them, for one
// vector of queries; formulas in gradient_tile.h.
//
// Pointers and factors are passed as copies, because stores to a tile might change what lies in
// memory.
#pragma once

#include "cpu/kernels/derivatives/derivative_scratch.h"
#include "cpu/kernels/tile/weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Backward: w before dropout in p, then ds and ds0, of keys [begin, end).
template <bool kAdditive, bool kCapped, class E, class P>
TORCH_EXT_INLINE void backward_column(const GradientScratch<E, P> x, const ScoreRule<SumOf<E>> rule,
                                      int64_t column, int64_t begin, int64_t end) {
  using V = Vec<SumOf<E>>;
  const V lse = V::load(x.lse + column), residual = V::load(x.residual + column),
          delta = V::load(x.delta + column);
  V u = V::fill(0);
  for (int64_t j = begin; j < end; ++j) {
    const int64_t entry = j * x.width + column;
    const V additive = kAdditive ? V::load(x.additive + entry) : V::fill(0);
    const V p = weight<kAdditive, kCapped>(rule, V::load(x.p + entry), additive, lse, residual, &u);
    const V ds = p * (V::load(x.ds + entry) - delta);
    p.store(x.p + entry);
    unless_hidden<kAdditive>(additive, ds).store(x.ds + entry);
    if constexpr (kCapped)
      unless_hidden<kAdditive>(additive, rule.cap_slope(u) * ds).store(x.ds0 + entry);
  }
}

// ds, ds0' and ds0, where `first` = p (dp - delta) and s0' = c s'.
template <bool kAdditive, bool kCapped, class E, class P>
TORCH_EXT_INLINE void store_factors(const GradientScratch<E, P> x, const ScoreRule<SumOf<E>> rule,
                                    int64_t entry, Vec<SumOf<E>> additive, Vec<SumOf<E>> u,
                                    Vec<SumOf<E>> s0_dot, Vec<SumOf<E>> first, Vec<SumOf<E>> ds) {
  using V = Vec<SumOf<E>>;
  const V slope = kCapped ? rule.cap_slope(u) : V::fill(1);
  unless_hidden<kAdditive>(additive, ds).store(x.ds + entry);
  unless_hidden<kAdditive>(additive, slope * first).store(x.s_dot + entry);
  if constexpr (kCapped) {
    const V bend = u * slope * rule.minus_two_by_cap;
    unless_hidden<kAdditive>(additive, fma(bend * s0_dot, first, slope * ds)).store(x.ds0 + entry);
  }
}

// Second order: w before dropout, ds, ds0 and ds0' of keys [begin, end).
template <bool kAdditive, bool kCapped, class E, class P>
TORCH_EXT_INLINE void second_order_column(const GradientScratch<E, P> x,
                                          const ScoreRule<SumOf<E>> rule, bool has_b_dot,
                                          int64_t column, int64_t begin, int64_t end) {
  using V = Vec<SumOf<E>>;
  const V lse = V::load(x.lse + column), residual = V::load(x.residual + column);
  const V delta = V::load(x.delta + column), center = V::load(x.center + column),
          mu = V::load(x.mu + column), epsilon = V::load(x.epsilon + column);
  V u = V::fill(0);
  for (int64_t j = begin; j < end; ++j) {
    const int64_t entry = j * x.width + column;
    const V additive = kAdditive ? V::load(x.additive + entry) : V::fill(0);
    const V p = weight<kAdditive, kCapped>(rule, V::load(x.p + entry), additive, lse, residual, &u);
    const V s0_dot = V::load(x.s_dot + entry) * rule.scale;
    V s_dot = kCapped ? rule.cap_slope(u) * s0_dot : s0_dot;
    if (has_b_dot) s_dot = s_dot + V::load(x.b_dot + entry);
    const V apart = (s_dot - center) - mu;
    const V centred = V::load(x.ds + entry) - delta;
    const V g = fma(apart, centred, V::load(x.dp_dot + entry));
    const V first = p * centred, ds = p * (g - epsilon);
    unless_hidden<kAdditive>(additive, p * apart).store(x.p + entry);
    store_factors<kAdditive, kCapped>(x, rule, entry, additive, u, s0_dot, first, ds);
  }
}

// The same from what the sweep has kept of these keys, relative to `origin` (width).
template <bool kAdditive, bool kCapped, class E, class P>
TORCH_EXT_INLINE void kept_column(const GradientScratch<E, P> x, const ScoreRule<SumOf<E>> rule,
                                  const SumOf<E>* origin, const TangentTiles<SumOf<E>> kept,
                                  int64_t column, int64_t begin, int64_t end) {
  using V = Vec<SumOf<E>>;
  const V delta = V::load(x.delta + column), epsilon = V::load(x.epsilon + column);
  const V mean = (V::load(x.center + column) - V::load(origin + column)) + V::load(x.mu + column);
  const V minus_mean = V::fill(0) - mean;
  for (int64_t j = begin; j < end; ++j) {
    const int64_t entry = j * x.width + column;
    const V additive = kAdditive ? V::load(x.additive + entry) : V::fill(0);
    const V p = V::load(kept.p + entry);
    const V apart = fma(minus_mean, p, V::load(kept.s_dot + entry));
    const V centred = V::load(kept.dp + entry) - delta;
    const V ds = fma(apart, centred, p * (V::load(kept.dp_dot + entry) - epsilon));
    unless_hidden<kAdditive>(additive, apart).store(x.p + entry);
    const V u = kCapped ? V::load(kept.u + entry) : V::fill(0);
    const V s0_dot = kCapped ? V::load(kept.s0_dot + entry) : V::fill(0);
    store_factors<kAdditive, kCapped>(x, rule, entry, additive, u, s0_dot, p * centred, ds);
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
