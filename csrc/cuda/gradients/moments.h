// Numbers of every row that the second order and the tangent need, in two passes over the keys:
//   delta = rowsum(p z dp) - dlse,  center = rowsum(p s')
//   mu = rowsum(p (s' - center)),  epsilon = rowsum(p (z dp' + (s' - center - mu) (z dp - delta)))
// The sink is one more key of every row, whose dp and dp' are 0. lse' = center + mu.
//
// Task: a tile of queries of one head, over the tiles of keys that the window shows to it.
#pragma once

#include "cuda/gradients/task.h"
#include "cuda/tile/statistics.h"

namespace torch_ext::cuda {

template <class E, Result kResult>
class MomentsTask : public GradientTask<E, Kind<kResult, true>> {
  using K = Kind<kResult, true>;
  using Base = GradientTask<E, K>;
  using Base::chunks_, Base::p_, Base::x_, Base::kOther;
  using typename Base::T;
  using typename Base::Tile;

 public:
  using Base::Base;
  using Base::kOwn, Base::kThreads;

  TORCH_EXT_DEVICE void run(int64_t index) {
    typename Tile::Place place{};
    place.first_row = this->warp_row();
    place.query = index % x_.tiles * kOwn;
    place.head = index / x_.tiles;
    block_barrier();
    if (thread_index() == 0) this->describe(place.head, 0, 0);
    block_barrier();
    this->read_own_rows(place);
    const TileRange tiles = visible_key_tiles(p_, place.query, kOwn, kOther);
    chunks_.start(place.query, {tiles.begin, tiles.end, 1});
    T sums[2][kRowSums];
    this->clear_sums(sums);
    for (int tile = tiles.begin; tile < tiles.end; ++tile) {
      place.key = static_cast<int64_t>(tile) * kOther;
      typename Tile::Fragments x;
      VisibleBits visible;
      this->multiply_tile(x);
      this->compute(place, false, x, visible, sums);
    }
    chunks_.finish();
    store(place, sums);
  }

 private:
  TORCH_EXT_DEVICE void store(const typename Tile::Place& place, const T (&sums)[2][kRowSums]) {
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) {
      T total[kRowSums];
      TORCH_EXT_UNROLL
      for (int n = 0; n < kRowSums; ++n) total[n] = quad_sum(sums[half][n]);
      const int64_t row = place.query + this->warp_row() + fragment_row(half);
      if (row < p_.query_length && lane_index() % 4 == 0)
        store_row(place.head, row, place.own_rows[half], total);
    }
  }

  TORCH_EXT_DEVICE void store_row(int64_t head, int64_t row, const RowNumbers<T>& numbers,
                                  const T (&sums)[kRowSums]) {
    const RowArrays<T> arrays = x_.template row_arrays<T>();
    const T weight = sink_weight(p_, head, numbers);
    const T sink_dot = head_number<T>(p_, p_.direction.sink, head) - numbers.center;
    if constexpr (kResult == Result::kMeans) {
      const Operand& dlse = p_.grad_logsumexp;
      arrays.of(head, RowArray::kDelta)[row] =
          sums[0] - (dlse ? row_value<T>(dlse, head_offset(p_, dlse, head), row) : T(0));
      arrays.of(head, RowArray::kCenter)[row] = sums[1] + (weight == 0 ? T(0) : weight * sink_dot);
    } else {
      const T from_sink = weight == 0 ? T(0) : -weight * numbers.delta;
      const T mu = sums[0] + (weight == 0 ? T(0) : weight * sink_dot);
      const T covariance = sums[2] + (weight == 0 ? T(0) : from_sink * sink_dot);
      arrays.of(head, RowArray::kMu)[row] = mu;
      arrays.of(head, RowArray::kEpsilon)[row] = sums[1] + covariance - mu * (sums[3] + from_sink);
      const Operand& lse_dot = p_.logsumexp_tangent;
      if (lse_dot)
        static_cast<T*>(lse_dot.data)[head_offset(p_, lse_dot, head) + row * lse_dot.row_stride] =
            numbers.center + mu;
    }
  }
};

template <class E, Result kResult>
struct MomentsKernel {
  using Task = MomentsTask<E, kResult>;
  using Parameters = GradientParameters;
  static constexpr const char* kName = "attention, moments of rows";
  static constexpr int kThreads = Task::kThreads, kBlocksPerProcessor = 2;

  static TORCH_EXT_INLINE int64_t tasks(const Parameters& x) {
    return x.problem.query_heads() * x.tiles;
  }
  static TORCH_EXT_DEVICE void run(const Parameters& x) {
    Task task(x, shared_memory());
    for (int64_t index = block_index(); index < tasks(x); index += block_count()) task.run(index);
  }
};

}  // namespace torch_ext::cuda
