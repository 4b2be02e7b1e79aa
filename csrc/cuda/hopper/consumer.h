// A warpgroup that computes the output of 64 queries per task.
#pragma once

#include "cuda/hopper/exact_rows.h"
#include "cuda/hopper/producer.h"
#include "cuda/hopper/rows.h"
#include "cuda/hopper/tiles.h"
#include "cuda/primitives/hopper_matrix.h"

namespace torch_ext::cuda::hopper {

template <class E, class Tiles>
struct ForwardConsumer {
  static constexpr int kKeys = Tiles::kKeys;
  static constexpr int kHeadSize = Tiles::kHeadSize;
  // Named barriers: whose turn it is, and the warps of a warpgroup.
  static constexpr int kTurns = 1, kMeetings = kTurns + Tiles::kConsumers;

  using Scores = float[kKeys / 2];
  using Weights = uint32_t[kKeys / 16][4];
  using Output = float[kHeadSize / 2];

  const ForwardParameters& p;
  typename Tiles::Shared& shared;
  const int warpgroup;
  unsigned tiles_begun = 0;  // tiles whose scores have been multiplied
  int query_parity = 0;

  // Of the task at hand: the warpgroup's first query, and the keys that all of its queries see.
  int first_query = 0;
  KeyRange seen_by_all{};
  SoftmaxRows rows{};

  TORCH_EXT_DEVICE void run() {
    if (warpgroup == Tiles::kConsumers - 1) pass_turn();  // the first turn is warpgroup 0's
    for_each_task(p, [&](const Task& task, int round) {
      const KeyRange tiles = tiles_of<Tiles>(p, task.query_tile);
      begin_task(task);
      Output o;
      TORCH_EXT_UNROLL
      for (int i = 0; i < kHeadSize / 2; ++i) o[i] = 0;
      if (tiles.begin < tiles.end) attend(tiles, round, o);
      if (hides_keys(tiles) && is_unsafe(round)) {
        store_exact_rows(task.head);
      } else {
        store_rows(task.head, o);
      }
    });
    if (warpgroup == 0) take_turn();  // nobody is left to take it
  }

  TORCH_EXT_DEVICE void begin_task(const Task& task) {
    first_query = task.query_tile * Tiles::kQueries + warpgroup * kWarpgroupRows;
    const int last = first_query + kWarpgroupRows - 1, length = p.visibility.query_length;
    seen_by_all = p.visibility.to_all(first_query, last < length ? last : length - 1);
    rows = {};
  }

  // The first of this thread's two; the other is 8 below.
  TORCH_EXT_DEVICE int query() const { return first_query + warp() * 16 + lane() / 4; }

  // Whether some query of the warpgroup does not see some key of these tiles; keys after the last
  // one, which are zeros, do not count.
  TORCH_EXT_DEVICE bool hides_keys(const KeyRange& tiles) const {
    const int end = p.visibility.clamp(tiles.end * kKeys);
    return tiles.begin * kKeys < seen_by_all.begin || end > seen_by_all.end;
  }

  // ---- One task ------------------------------------------------------------------------------

  TORCH_EXT_DEVICE void attend(const KeyRange& tiles, int round, Output& o) {
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
    pack_weights<E>(weights, s);
    ++tiles_begun;

    for (; tile > tiles.begin; --tile) {
      take_turn();
      multiply_scores(s);
      multiply_values(o, weights);
      pass_turn();
      inspect_values(tile, round);
      wait_for_products<1>(s);
      release(shared.key_free[key().stage()]);
      weigh(tile - 1, s, alpha);
      await_values();  // here: between the two waits for products the compiler keeps the softmax
      wait_for_products<0>(o);
      release(shared.value_free[value().stage()]);
      rescale(o, alpha);
      pack_weights<E>(weights, s);
      ++tiles_begun;
    }
    release(shared.query_free);
    query_parity ^= 1;

    multiply_values(o, weights);
    inspect_values(tile, round);
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
    const MatrixDescriptor q = describe_matrix(
        shared_address(shared.query) + warpgroup * kWarpgroupRows * kBlockRowBytes, 0);
    const MatrixDescriptor k = describe_matrix(shared_address(shared.key[key().stage()]), 0);
    begin_products();
    TORCH_EXT_UNROLL
    for (int d = 0; d < kHeadSize; d += 16) {
      const int block = d / kBlockColumns, within = d % kBlockColumns * 2;
      multiply_add<E>(s, q + (block * Tiles::kQueryBlockBytes + within),
                      k + (block * Tiles::kKeyBlockBytes + within), d > 0);
    }
    commit_products();
  }

  // The values of the tile whose scores are there.
  TORCH_EXT_DEVICE void await_values() { wait(shared.value_full[key().stage()], key().parity()); }

  // O += P V
  TORCH_EXT_DEVICE void multiply_values(Output& o, const Weights& weights) {
    const MatrixDescriptor v =
        describe_matrix(shared_address(shared.value[value().stage()]), Tiles::kKeyBlockBytes);
    begin_products();
    TORCH_EXT_UNROLL
    for (int j = 0; j < kKeys / 16; ++j) {
      multiply_add<E>(o, weights[j], v + j * 16 * kBlockRowBytes, true);
    }
    commit_products();
  }

  // S <- P, rows advance
  TORCH_EXT_DEVICE void weigh(int tile, Scores& s, float (&alpha)[2]) {
    const int begin = tile * kKeys;
    if (begin < seen_by_all.begin || begin + kKeys > seen_by_all.end) {
      hide_keys(s, p.visibility, query(), begin);
    }
    advance_softmax(rows, s, alpha, p.scale_log2);
  }

  // Notes the round if the weights of hidden keys, 0, would not make their values vanish.
  TORCH_EXT_DEVICE void inspect_values(int tile, int round) {
    if (hides_keys({tile, tile + 1}) &&
        finds_non_finite<E>(shared.value[value().stage()], sizeof(shared.value[0]))) {
      shared.unsafe_round[warpgroup][round % 2] = round;
    }
  }

  // ---- Meeting others --------------------------------------------------------------------------

  // This warp no longer reads a tile.
  TORCH_EXT_DEVICE void release(SharedBarrier& barrier) {
    warp_barrier();
    if (lane() == 0) arrive(barrier);
  }

  TORCH_EXT_DEVICE void take_turn() {
    if constexpr (Tiles::kTakesTurns) meet_at(kTurns + warpgroup, 2 * kWarpgroup);
  }
  TORCH_EXT_DEVICE void pass_turn() {
    if constexpr (Tiles::kTakesTurns) {
      const int next = warpgroup + 1 < Tiles::kConsumers ? warpgroup + 1 : 0;
      arrive_at(kTurns + next, 2 * kWarpgroup);
    }
  }

  // Whether any thread of the warpgroup has noted this round. The next one is noted elsewhere, so
  // that this one can still be read.
  TORCH_EXT_DEVICE bool is_unsafe(int round) {
    meet_at(kMeetings + warpgroup, kWarpgroup);
    return shared.unsafe_round[warpgroup][round % 2] == round;
  }

  // ---- Results ---------------------------------------------------------------------------------

  // O / sum, 8 columns of a row per store: those of 8 n … 8 n + 7 are made the lane n % 4's.
  TORCH_EXT_DEVICE void store_rows(int head, const Output& o) {
    const ForwardProblem& problem = p.problem;
    E* const output =
        static_cast<E*>(problem.output.data) + head_offset(problem, problem.output, head);
    TORCH_EXT_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float sum = quad_sum(rows.sum[r]), factor = 1 / sum;
      const int64_t i = query() + 8 * r;
      const bool is_inside = i < problem.query_length;
      E* const row = output + i * problem.output.row_stride + lane() % 4 * 8;
      TORCH_EXT_UNROLL
      for (int column = 0; column < kHeadSize; column += 32) {
        Words words;
        TORCH_EXT_UNROLL
        for (int n = 0; n < 4; ++n) {
          const float* const x = o + column / 2 + 4 * n + 2 * r;
          words.x[n] = sum == 0 ? 0 : pack<E>(x[0] * factor, x[1] * factor);
        }
        transpose_quad(words.x);
        if (is_inside) *reinterpret_cast<Words*>(row + column) = words;
      }
      if (is_inside && lane() % 4 == 0) store_logsumexp(p, head, i, rows.max[r], sum);
    }
  }

  TORCH_EXT_DEVICE void store_exact_rows(int head) {
    for (int r = 0; r < 16; ++r) {
      const int i = first_query + warp() * 16 + r;
      if (i < p.problem.query_length) store_exact_row<E, kHeadSize>(p, head, i);
    }
  }
};

}  // namespace torch_ext::cuda::hopper
