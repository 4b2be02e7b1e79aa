// A warpgroup that computes the output of 64 queries per task.
#pragma once

#include "cuda/hopper/forward/exact_rows.h"
#include "cuda/hopper/forward/softmax.h"
#include "cuda/hopper/forward/tiles.h"
#include "cuda/hopper/products.h"

namespace torch_ext::cuda::hopper {

template <class E, class Tiles>
struct ForwardConsumer {
  static constexpr int kKeys = Tiles::kKeys;
  static constexpr int kHeadSize = Tiles::kHeadSize;
  static constexpr int kTurns = 1;  // named barriers: whose turn it is

  using Scores = float[kKeys / 2];
  using Weights = uint32_t[kKeys / 16][4];
  using Output = float[kHeadSize / 2];

  const ForwardParameters& p;
  typename Tiles::Shared& shared;
  const int warpgroup;
  unsigned tiles_begun = 0;  // tiles whose scores have been multiplied
  int query_parity = 0;

  // Of the task at hand.
  WarpgroupRows queries{};
  SoftmaxRows rows{};

  TORCH_EXT_DEVICE void run() {
    if (warpgroup == Tiles::kConsumers - 1) pass_turn();  // the first turn is warpgroup 0's
    for_each_task(p.schedule, [&](const Task& task) {
      const Range tiles = visible_tiles<Tiles::kQueries, kKeys>(p.visibility, task.tile);
      queries.begin(p.visibility, task.tile * Tiles::kQueries + warpgroup * kWarpgroupRows);
      rows = {};
      Output o;
      clear_accumulators(o);
      if (tiles.begin < tiles.end) attend(tiles, o);
      if (has_large_scores() || (!warp_finite(o) && (hides_keys(task) || lacks_scores()))) {
        store_exact_rows(task.head);
      } else {
        store_rows(task.head, o);
      }
    });
    if (warpgroup == 0) take_turn();  // nobody is left to take it
  }

  // ---- One task ------------------------------------------------------------------------------

  TORCH_EXT_DEVICE void attend(const Range& tiles, Output& o) {
    wait(shared.query_full, query_parity);
    Scores s;
    Weights weights;
    float alpha[2];
    int tile = tiles.end - 1;

    multiply_scores(s);
    wait_for_products<0>(s);
    release(shared.key_free[key().stage()]);
    weigh(tile, s, alpha);
    await_values();
    pack_all<E>(weights, s);
    ++tiles_begun;

    for (; tile > tiles.begin; --tile) {
      take_turn();
      multiply_scores(s);
      multiply_values(o, weights);
      pass_turn();
      wait_for_products<1>(s);
      release(shared.key_free[key().stage()]);
      weigh(tile - 1, s, alpha);
      await_values();  // here: between the two waits for products the compiler keeps the softmax
      wait_for_products<0>(o);
      release(shared.value_free[value().stage()]);
      rescale(o, alpha);
      pack_all<E>(weights, s);
      ++tiles_begun;
    }
    release(shared.query_free);
    query_parity ^= 1;

    multiply_values(o, weights);
    wait_for_products<0>(o);
    release(shared.value_free[value().stage()]);
  }

  // The tile of keys whose scores are next, and that of values whose weights are known.
  using Position = RingPosition<Tiles::kStages>;
  TORCH_EXT_DEVICE Position key() const { return {tiles_begun}; }
  TORCH_EXT_DEVICE Position value() const { return {tiles_begun - 1}; }

  // S = Q Kᵀ
  TORCH_EXT_DEVICE void multiply_scores(Scores& s) {
    wait(shared.key_full[key().stage()], key().parity());
    start_row_product<E, kHeadSize>(
        s, {shared.query + warpgroup * kWarpgroupRows * kBlockRowBytes, Tiles::kQueryBlockBytes},
        {shared.key[key().stage()], Tiles::kKeyBlockBytes});
  }

  // The values of the tile whose scores are there.
  TORCH_EXT_DEVICE void await_values() { wait(shared.value_full[key().stage()], key().parity()); }

  // O += P V
  TORCH_EXT_DEVICE void multiply_values(Output& o, const Weights& weights) {
    start_column_product<E>(o, weights, {shared.value[value().stage()], Tiles::kKeyBlockBytes});
  }

  // S <- P, rows advance
  TORCH_EXT_DEVICE void weigh(int tile, Scores& s, float (&alpha)[2]) {
    const int begin = tile * kKeys;
    if (!queries.see_all(begin, begin + kKeys)) hide(s, p.visibility, queries.of_thread(), begin);
    advance_softmax(rows, s, alpha, p.scale_log2);
  }

  // ---- Taking turns ---------------------------------------------------------------------------

  TORCH_EXT_DEVICE void take_turn() {
    if constexpr (Tiles::kTakesTurns) meet_at(kTurns + warpgroup, 2 * kWarpgroup);
  }
  TORCH_EXT_DEVICE void pass_turn() {
    if constexpr (Tiles::kTakesTurns) {
      const int next = warpgroup + 1 < Tiles::kConsumers ? warpgroup + 1 : 0;
      arrive_at(kTurns + next, 2 * kWarpgroup);
    }
  }

  // ---- Results ---------------------------------------------------------------------------------

  // Whether some key is hidden. Positions after the last one, which are zeros, do not count.
  TORCH_EXT_DEVICE bool hides_keys(const Task& task) const {
    const Range tiles = visible_tiles<Tiles::kQueries, kKeys>(p.visibility, task.tile);
    return !queries.see_all(tiles.begin * kKeys, p.visibility.clamp(tiles.end * kKeys));
  }
  // Whether all scores of some row are -inf.
  TORCH_EXT_DEVICE bool lacks_scores() const {
    return warp_any(rows.max[0] == kNoScore || rows.max[1] == kNoScore);
  }
  TORCH_EXT_DEVICE bool has_large_scores() const {
    bool is_large = false;
    TORCH_EXT_UNROLL
    for (const float max : rows.max) {
      is_large |= max != kNoScore && std::fabs(max * p.scale_log2) >= kLargestScore;
    }
    return warp_any(is_large);
  }

  // O / sum
  TORCH_EXT_DEVICE void store_rows(int head, const Output& o) {
    const ForwardProblem& problem = p.problem;
    E* const output = head_data<E>(problem, problem.output, head, 1);
    float sum[2];
    TORCH_EXT_UNROLL
    for (int r = 0; r < 2; ++r) {
      sum[r] = quad_sum(rows.sum[r]);
      const int64_t i = queries.of_thread() + 8 * r;
      store_row(i < problem.query_length ? output + i * problem.output.row_stride : nullptr, o, r,
                sum[r] == 0 ? 0 : 1 / sum[r]);
    }
    if (lane() % 4 > 0) return;
    const LogsumexpWriter logsumexp(problem, head);
    TORCH_EXT_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float shift = rows.max[r] * p.scale_log2, high = shift * kLn2;
      const float low = std::fma(shift, kLn2, -high) + shift * kLn2Low;
      if (queries.of_thread() + 8 * r < problem.query_length) {
        logsumexp.write(queries.of_thread() + 8 * r, high, low, sum[r]);
      }
    }
  }

  TORCH_EXT_DEVICE void store_exact_rows(int head) {
    for (int r = 0; r < 16; ++r) {
      const int i = queries.of_warp() + r;
      if (i < p.problem.query_length) store_exact_row<E, kHeadSize>(p, head, i);
    }
  }
};

}  // namespace torch_ext::cuda::hopper
