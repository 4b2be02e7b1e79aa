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
  RingPosition<Tiles::kStages> key_at{}, value_at{};
  int query_parity = 0;

  // The queries of the task at hand, and the keys of this thread's two rows.
  int64_t first_query = 0;
  KeyRange keys_seen_by_all{}, keys_seen[2]{};
  SoftmaxRows rows{};
  bool is_unsafe = false;  // this thread has met inf or NaN in a tile that is partly hidden

  TORCH_EXT_DEVICE void run() {
    if (warpgroup == Tiles::kConsumers - 1) pass_turn();  // the first turn is warpgroup 0's
    for_each_task(p, [&](const Task& task, int round) {
      const KeyRange tiles = tiles_of<Tiles>(p, task.query_tile);
      begin_task(task);
      Output o;
      TORCH_EXT_UNROLL
      for (int i = 0; i < kHeadSize / 2; ++i) o[i] = 0;
      if (tiles.begin < tiles.end) attend(tiles, o);
      if (hides_keys(tiles) && any_is_unsafe(round)) {
        store_exact_rows(task.head);
      } else {
        store_rows(task.head, o);
      }
    });
    if (warpgroup == 0) take_turn();  // nobody is left to take it
  }

  TORCH_EXT_DEVICE void begin_task(const Task& task) {
    first_query = task.query_tile * Tiles::kQueries + warpgroup * kWarpgroupRows;
    const int64_t last = first_query + kWarpgroupRows - 1, length = p.problem.query_length;
    keys_seen_by_all = keys_of_all(p.problem, first_query, last < length ? last : length - 1);
    TORCH_EXT_UNROLL
    for (int r = 0; r < 2; ++r) {
      keys_seen[r] = keys_of_any(p.problem, query_of(r), query_of(r));
    }
    rows = {};
    is_unsafe = false;
  }
  TORCH_EXT_DEVICE int64_t query_of(int r) const {
    return first_query + warp_index() % 4 * 16 + lane_index() / 4 + 8 * r;
  }

  // Whether some query of the warpgroup does not see some key of these tiles; keys after the last
  // one, which are zeros, do not count.
  TORCH_EXT_DEVICE bool hides_keys(const KeyRange& tiles) const {
    const int end = clamp_key(p.problem, int64_t{tiles.end} * kKeys);
    return tiles.begin * kKeys < keys_seen_by_all.begin || end > keys_seen_by_all.end;
  }

  // ---- One task ------------------------------------------------------------------------------

  TORCH_EXT_DEVICE void attend(const KeyRange& tiles, Output& o) {
    wait(shared.query_full, query_parity);
    Scores s;
    Weights weights;
    float alpha[2];
    int tile = tiles.end - 1;

    wait(shared.key_full[key_at.stage()], key_at.parity());
    begin_products();
    multiply_scores(s);
    wait_for_products<0>(s);
    release(shared.key_free[key_at.stage()]);
    ++key_at.count;
    weigh(tile, s, alpha);
    pack_weights<E>(weights, s);

    for (; tile > tiles.begin; --tile) {
      wait(shared.key_full[key_at.stage()], key_at.parity());
      take_turn();
      begin_products();
      multiply_scores(s);
      wait(shared.value_full[value_at.stage()], value_at.parity());
      begin_products();
      multiply_values(o, weights);
      pass_turn();
      inspect_values(tile);
      wait_for_products<1>(s);
      release(shared.key_free[key_at.stage()]);
      ++key_at.count;
      weigh(tile - 1, s, alpha);
      wait_for_products<0>(o);
      release(shared.value_free[value_at.stage()]);
      ++value_at.count;
      rescale(o, alpha);
      pack_weights<E>(weights, s);
    }
    release(shared.query_free);
    query_parity ^= 1;

    wait(shared.value_full[value_at.stage()], value_at.parity());
    begin_products();
    multiply_values(o, weights);
    inspect_values(tile);
    wait_for_products<0>(o);
    release(shared.value_free[value_at.stage()]);
    ++value_at.count;
  }

  // S = Q Kᵀ
  TORCH_EXT_DEVICE void multiply_scores(Scores& s) {
    const MatrixDescriptor q = describe_matrix(
        shared_address(shared.query) + warpgroup * kWarpgroupRows * kBlockRowBytes, 0);
    const MatrixDescriptor k = describe_matrix(shared_address(shared.key[key_at.stage()]), 0);
    TORCH_EXT_UNROLL
    for (int d = 0; d < kHeadSize; d += 16) {
      const int block = d / kBlockColumns, within = d % kBlockColumns * 2;
      multiply_add<E>(s, q + (block * Tiles::kQueryBlockBytes + within),
                      k + (block * Tiles::kKeyBlockBytes + within), d > 0);
    }
    commit_products();
  }

  // O += P V
  TORCH_EXT_DEVICE void multiply_values(Output& o, const Weights& weights) {
    const MatrixDescriptor v =
        describe_matrix(shared_address(shared.value[value_at.stage()]), Tiles::kKeyBlockBytes);
    TORCH_EXT_UNROLL
    for (int j = 0; j < kKeys / 16; ++j) {
      multiply_add<E>(o, weights[j], v + j * 16 * kBlockRowBytes, true);
    }
    commit_products();
  }

  // S <- P, rows advance
  TORCH_EXT_DEVICE void weigh(int tile, Scores& s, float (&alpha)[2]) {
    const int begin = tile * kKeys;
    if (begin < keys_seen_by_all.begin || begin + kKeys > keys_seen_by_all.end) {
      hide_keys(s, begin, keys_seen);
    }
    advance_softmax(rows, s, alpha, p.scale_log2);
  }

  TORCH_EXT_DEVICE void inspect_values(int tile) {
    if (!hides_keys({tile, tile + 1})) return;
    is_unsafe |= finds_non_finite<E>(shared.value[value_at.stage()], sizeof(shared.value[0]));
  }

  // ---- Meeting others --------------------------------------------------------------------------

  // This warp no longer reads a tile.
  TORCH_EXT_DEVICE void release(SharedBarrier& barrier) {
    warp_barrier();
    if (lane_index() == 0) arrive(barrier);
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

  // Whether is_unsafe in any thread of the warpgroup. The next round's answer goes elsewhere, so
  // that it can be written while this one is read.
  TORCH_EXT_DEVICE bool any_is_unsafe(int round) {
    int& latest = shared.unsafe_round[warpgroup][round % 2];
    if (is_unsafe) latest = round;
    meet_at(kMeetings + warpgroup, kWarpgroup);
    return latest == round;
  }

  // ---- Results ---------------------------------------------------------------------------------

  // O / sum
  TORCH_EXT_DEVICE void store_rows(int64_t head, const Output& o) {
    const ForwardProblem& problem = p.problem;
    E* const output =
        static_cast<E*>(problem.output.data) + head_offset(problem, problem.output, head);
    TORCH_EXT_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float sum = quad_sum(rows.sum[r]);
      const int64_t i = query_of(r);
      if (i >= problem.query_length) continue;
      const float factor = 1 / sum;
      E* const row = output + i * problem.output.row_stride + lane_index() % 4 * 2;
      TORCH_EXT_UNROLL
      for (int n = 0; n < kHeadSize / 8; ++n) {
        const float* const x = o + 4 * n + 2 * r;
        *reinterpret_cast<uint32_t*>(row + 8 * n) =
            sum == 0 ? 0 : pack<E>(x[0] * factor, x[1] * factor);
      }
      if (lane_index() % 4 == 0) store_logsumexp(p, head, i, rows.max[r], sum);
    }
  }

  TORCH_EXT_DEVICE void store_exact_rows(int64_t head) {
    for (int r = 0; r < 16; ++r) {
      const int64_t i = first_query + warp_index() % 4 * 16 + r;
      if (i < p.problem.query_length) store_exact_row<E, kHeadSize>(p, head, i);
    }
  }
};

}  // namespace torch_ext::cuda::hopper
