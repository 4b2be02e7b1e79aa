// From the products of a tile of tangent_sweep.h to weights, tangents of scores and the moments of
// their rows, for one vector of queries; formulas there and in row_statistics.h.
#pragma once

#include "cpu/kernels/derivatives/derivative_scratch.h"
#include "cpu/kernels/tile/weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T, class P>
class TangentColumns {
 public:
  // `keeps`: what softcap bends, for whoever takes the tiles later.
  TangentColumns(const P& problem, const TangentScratch<T, P>& scratch, bool keeps)
      : rule_(problem),
        x_(scratch),
        keys_(problem.key_length),
        has_b_dot_(adds_to_scores(problem.direction)),
        keeps_(keeps) {
    if constexpr (kSecondOrder)
      has_dp_ =
          problem.grad_output && (problem.grad_query || problem.grad_key || problem.grad_bias ||
                                  problem.grad_slopes || problem.grad_sink);
  }

  // Whether dp and dp' are wanted.
  bool has_dp() const { return has_dp_; }
  bool is_capped() const { return rule_.is_capped; }

  // s -> p and q' k^T + q k'^T -> p (s' - origin); their moments are added to those of the rows. Of
  // the `keys` of the tile the first `end` are seen, of those the first `plain` with nothing added.
  template <bool kCapped>
  void add(const TangentTiles<T>& tiles, int64_t column, int64_t plain, int64_t end,
           int64_t keys) const {
    // Copies, here and below, because stores to a tile might change what lies in memory.
    const TangentTiles<T> now = tiles;
    RowMoments<T> tile = RowMoments<T>::zero(), row = x_.moments.load(column);
    weigh<false, kCapped>(now, column, 0, plain, tile);
    weigh<true, kCapped>(now, column, plain, end, tile);
    tile.center = tile.mean(tile.s_dot);
    // The mean of the first tile that has weight, if it has its share of it: in a tile without,
    // such as keys far away under ALiBi, s' says little of the rest.
    const T share = static_cast<T>(keys) / static_cast<T>(4 * keys_);
    const V mean = if_less(tile.weight, V::fill(share), V::fill(0), tile.center);
    const V origin = if_equal(row.weight, V::fill(0), mean, V::load(x_.origin + column));
    origin.store(x_.origin + column);
    const V mean_dp = tile.mean(tile.dp);
    tile.s_dot = V::fill(0);
    take_apart<false>(now, column, 0, plain, origin, mean_dp, tile);
    take_apart<true>(now, column, plain, end, origin, mean_dp, tile);
    row.add(tile);
    x_.moments.store(column, row);
  }

 private:
  using V = Vec<T>;
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);
  // Sums of few keys are added up, which keeps rounding errors small.
  static constexpr int64_t kFewKeys = 8;

  // s -> p and q' k^T + q k'^T -> s' of keys [begin, end), whole groups of few but for the last;
  // their moments are added to those of the tile.
  template <bool kAdditive, bool kCapped>
  void weigh(const TangentTiles<T> now, int64_t column, int64_t begin, int64_t end,
             RowMoments<T>& moments) const {
    const V lse = V::load(x_.lse + column), residual = V::load(x_.residual + column);
    const ScoreRule<T> rule = rule_;
    const bool has_b_dot = has_b_dot_, keeps = keeps_, has_dp = kSecondOrder && has_dp_;
    const int64_t width = x_.width;
    const T *additive_tile = x_.additive, *b_dot = x_.b_dot;
    V u = V::fill(0);
    RowMoments<T> tile = moments;
    for (; begin < end; begin += kFewKeys) {
      RowMoments<T> few = RowMoments<T>::zero();
      for (int64_t j = begin; j < smaller(end, begin + kFewKeys); ++j) {
        const int64_t entry = j * width + column;
        const V additive = kAdditive ? V::load(additive_tile + entry) : V::fill(0);
        const V p =
            weight<kAdditive, kCapped>(rule, V::load(now.p + entry), additive, lse, residual, &u);
        V s_dot = V::load(now.s_dot + entry) * rule.scale;
        if constexpr (kCapped) {
          if (keeps) {
            u.store(now.u + entry);
            s_dot.store(now.s0_dot + entry);
          }
          s_dot = s_dot * rule.cap_slope(u);
        }
        if (has_b_dot) s_dot = s_dot + V::load(b_dot + entry);
        s_dot = unless_hidden<kAdditive>(additive, s_dot);
        p.store(now.p + entry);
        s_dot.store(now.s_dot + entry);
        few.weight = few.weight + p;
        few.s_dot = few.s_dot + p * s_dot;
        if (!has_dp) continue;
        few.dp = few.dp + unless_hidden<kAdditive>(additive, p * V::load(now.dp + entry));
        few.dp_dot =
            few.dp_dot + unless_hidden<kAdditive>(additive, p * V::load(now.dp_dot + entry));
      }
      tile.weight = tile.weight + few.weight;
      tile.s_dot = tile.s_dot + few.s_dot;
      tile.dp = tile.dp + few.dp;
      tile.dp_dot = tile.dp_dot + few.dp_dot;
    }
    moments = tile;
  }

  // s' -> p (s' - origin) of keys [begin, end), and what is left of the tile's moments:
  // sum(p (s' - center)), the covariance of s' and dp.
  template <bool kAdditive>
  void take_apart(const TangentTiles<T> now, int64_t column, int64_t begin, int64_t end, V origin,
                  V mean_dp, RowMoments<T>& moments) const {
    RowMoments<T> tile = moments;
    const bool has_dp = kSecondOrder && has_dp_;
    const int64_t width = x_.width;
    const T* additive_tile = x_.additive;
    for (; begin < end; begin += kFewKeys) {
      V sum = V::fill(0), covariance = V::fill(0);
      for (int64_t j = begin; j < smaller(end, begin + kFewKeys); ++j) {
        const int64_t entry = j * width + column;
        const V additive = kAdditive ? V::load(additive_tile + entry) : V::fill(0);
        const V p = V::load(now.p + entry), s_dot = V::load(now.s_dot + entry);
        const V apart = unless_hidden<kAdditive>(additive, p * (s_dot - tile.center));
        unless_hidden<kAdditive>(additive, p * (s_dot - origin)).store(now.s_dot + entry);
        sum = sum + apart;
        if (!has_dp) continue;
        const V product = apart * (V::load(now.dp + entry) - mean_dp);
        covariance = covariance + unless_hidden<kAdditive>(additive, product);
      }
      tile.s_dot = tile.s_dot + sum;
      tile.covariance = tile.covariance + covariance;
    }
    moments = tile;
  }

  ScoreRule<T> rule_;
  const TangentScratch<T, P>& x_;
  int64_t keys_;  // M
  bool has_b_dot_, keeps_, has_dp_ = false;
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
