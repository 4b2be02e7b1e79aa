// A warpgroup that computes the gradients of 64 rows of the own side per task.
#pragma once

#include "cuda/hopper/backward/exact_rows.h"
#include "cuda/hopper/products.h"

namespace torch_ext::cuda::hopper {

template <class E, class Tiles>
struct BackwardConsumer {
  static constexpr int kOther = Tiles::kOther;
  static constexpr int kHeadSize = Tiles::kHeadSize;

  using Scores = float[kOther / 2];
  using Weights = uint32_t[kOther / 16][4];
  using Gradient = float[kHeadSize / 2];
  // A thread's part of a tile, and of the gradients.
  struct Numbers {
    Scores s, dp;
    Weights weights, ds;
    Gradient dx, dy;
  };

  const BackwardParameters& p;
  typename Tiles::Shared& shared;
  const int warpgroup;
  unsigned tiles_done = 0;  // the tile at hand, in the order in which they come
  int own_parity = 0;

  // Of the task at hand: its rows, and the statistics of the thread's two, where they are queries.
  WarpgroupRows rows{};
  RowStatistics own_rows{};

  TORCH_EXT_DEVICE void run() {
    for_each_task(p.schedule, [&](const Task& task) {
      const Range tiles = visible_tiles<Tiles::kOwn, kOther>(p.visibility, task.tile);
      begin_task(task);
      Numbers x;
      if constexpr (Tiles::kHasDx) clear_accumulators(x.dx);
      if constexpr (Tiles::kHasDy) clear_accumulators(x.dy);
      if (tiles.begin < tiles.end) accumulate(tiles, x);
      const int head = task.head * sharers();
      if (is_finite(x) || !(hides_some(tiles) || has_unusable_rows(tiles, head))) {
        const Side own = Tiles::kOwnsKeys ? key_side(p.problem) : query_side(p.problem);
        if (Tiles::kHasDx && *own.dx) store_rows(*own.dx, own, head, x.dx, p.scale);
        if (Tiles::kHasDy && *own.dy) store_rows(*own.dy, own, head, x.dy, 1);
      } else {
        store_exact_rows(head);
      }
    });
  }

  // Query heads that read a head of the own side.
  TORCH_EXT_DEVICE int sharers() const {
    return Tiles::kOwnsKeys ? static_cast<int>(p.problem.group) : 1;
  }

  TORCH_EXT_DEVICE void begin_task(const Task& task) {
    rows.begin(p.visibility, task.tile * Tiles::kOwn + warpgroup * kWarpgroupRows);
    if constexpr (!Tiles::kOwnsKeys) {
      TORCH_EXT_UNROLL
      for (int r = 0; r < 2; ++r) {
        const int i = rows.of_thread() + 8 * r;
        const RowStatistics& x = p.statistics_of(task.head)[i / 2];
        own_rows.lse.of[r] = x.lse.of[i % 2];
        own_rows.delta.of[r] = x.delta.of[i % 2];
      }
    }
  }

  // ---- One task ------------------------------------------------------------------------------

  TORCH_EXT_DEVICE void accumulate(const Range& tiles, Numbers& x) {
    wait(shared.own_full, own_parity);
    for (int sharer = 0; sharer < sharers(); ++sharer) {
      for (int tile = tiles.begin; tile < tiles.end; ++tile) {
        start_scores(x.s);
        finish_gradients<1>(x);
        if (sharer > 0 || tile > tiles.begin) release_factors();
        if constexpr (Tiles::kHasDx) start_dp(x.dp);
        use_scores(tile, x);
        ++tiles_done;
      }
    }
    finish_gradients<0>(x);
    release_factors();
    release(shared.own_free);
    own_parity ^= 1;
  }

  // Ends with products into dx and dy under way, behind which the next tile's S follows.
  TORCH_EXT_DEVICE void use_scores(int tile, Numbers& x) {
    wait_for_products<Tiles::kHasDx ? 1 : 0>(x.s);
    weigh(tile, x.s);
    if constexpr (!Tiles::kHasDx) release(shared.x_free[x_at().stage()]);
    if constexpr (Tiles::kHasDy) {
      pack_all<E>(x.weights, x.s);
      if constexpr (!Tiles::kHasDx) await_y();
      start_column_product<E>(x.dy, x.weights, {shared.y[y_at().stage()], Tiles::kOtherBlockBytes});
    }
    if constexpr (Tiles::kHasDx) {
      wait_for_products<Tiles::kHasDy ? 1 : 0>(x.dp);
      if constexpr (!Tiles::kHasDy) release(shared.y_free[y_at().stage()]);
      differentiate(x.s, x.dp);
      pack_all<E>(x.ds, x.dp);
      start_column_product<E>(x.dx, x.ds, {shared.x[x_at().stage()], Tiles::kOtherBlockBytes});
    }
  }

  using XPosition = RingPosition<Tiles::kStages>;
  using YPosition = RingPosition<Tiles::kStagesOfY>;
  TORCH_EXT_DEVICE XPosition x_at() const { return {tiles_done}; }
  TORCH_EXT_DEVICE YPosition y_at() const { return {tiles_done}; }
  TORCH_EXT_DEVICE void await_y() { wait(shared.y_full[y_at().stage()], y_at().parity()); }

  // Of the warpgroup's rows.
  TORCH_EXT_DEVICE int own_offset() const { return warpgroup * kWarpgroupRows * kBlockRowBytes; }

  // S = x x'ᵀ
  TORCH_EXT_DEVICE void start_scores(Scores& s) {
    wait(shared.x_full[x_at().stage()], x_at().parity());
    start_row_product<E, kHeadSize>(s, {shared.own_x + own_offset(), Tiles::kOwnBlockBytes},
                                    {shared.x[x_at().stage()], Tiles::kOtherBlockBytes});
  }
  // dP = y y'ᵀ
  TORCH_EXT_DEVICE void start_dp(Scores& dp) {
    await_y();
    start_row_product<E, kHeadSize>(dp, {shared.own_y + own_offset(), Tiles::kOwnBlockBytes},
                                    {shared.y[y_at().stage()], Tiles::kOtherBlockBytes});
  }
  // All products into dx and dy, which leave registers for others.
  template <int kPending>
  TORCH_EXT_DEVICE void finish_gradients(Numbers& x) {
    if constexpr (Tiles::kHasDx) wait_for_products<kPending>(x.dx);
    if constexpr (Tiles::kHasDy) wait_for_products<kPending>(x.dy);
  }

  // What the tile before this one was a factor for.
  TORCH_EXT_DEVICE void release_factors() {
    if constexpr (Tiles::kHasDx) release(shared.x_free[XPosition{tiles_done - 1}.stage()]);
    if constexpr (Tiles::kHasDy) release(shared.y_free[YPosition{tiles_done - 1}.stage()]);
  }

  // S <- P
  TORCH_EXT_DEVICE void weigh(int tile, Scores& s) {
    const int begin = tile * kOther;
    if (!rows.see_all(begin, begin + kOther)) hide(s, p.visibility, rows.of_thread(), begin);
    for_each_entry<&RowStatistics::lse>(
        [&](int i, float lse) { s[i] = exp2_fast(std::fma(s[i], p.scale_log2, -lse)); });
  }

  // dP <- dS = P (dP - delta)
  TORCH_EXT_DEVICE void differentiate(const Scores& weights, Scores& dp) {
    for_each_entry<&RowStatistics::delta>(
        [&](int i, float delta) { dp[i] = weights[i] * (dp[i] - delta); });
  }

  // use(i, the number of the query that element i belongs to), which is that of row r or column c.
  template <RowStatistics::Pair RowStatistics::* kNumber, class Use>
  TORCH_EXT_DEVICE void for_each_entry(const Use& use) {
    const RowStatistics* const columns = shared.statistics[x_at().stage()] + lane() % 4;
    TORCH_EXT_UNROLL
    for (int n = 0; n < kOther / 8; ++n) {
      const RowStatistics::Pair pair =
          Tiles::kOwnsKeys ? columns[4 * n].*kNumber : own_rows.*kNumber;
      TORCH_EXT_UNROLL
      for (int i = 0; i < 4; ++i) use(4 * n + i, pair.of[Tiles::kOwnsKeys ? i % 2 : i / 2]);
    }
  }

  // ---- Results ---------------------------------------------------------------------------------

  TORCH_EXT_DEVICE bool is_finite(const Numbers& x) const {
    return (!Tiles::kHasDx || warp_finite(x.dx)) && (!Tiles::kHasDy || warp_finite(x.dy));
  }

  // Whether some entry is hidden. Positions after the last one, which are zeros, do not count.
  TORCH_EXT_DEVICE bool hides_some(const Range& tiles) const {
    return !rows.see_all(tiles.begin * kOther, p.visibility.clamp(tiles.end * kOther));
  }

  // Whether a row that was read has a logsumexp that is NaN, or none (row_statistics.h).
  TORCH_EXT_DEVICE bool has_unusable_rows(const Range& tiles, int head) const {
    const Range read = Tiles::kOwnsKeys ? Range{tiles.begin * kOther, tiles.end * kOther}
                                        : Range{rows.first, rows.first + kWarpgroupRows};
    bool is_unusable = false;
    for (int h = head; h < head + sharers(); ++h) {
      for (int i = read.begin + lane(); i < read.end; i += kWarpSize) {
        const float lse = p.statistics_of(h)[i / 2].lse.of[i % 2];
        is_unusable |= std::isnan(lse) || (lse == -kNoScore && i < p.problem.query_length);
      }
    }
    return warp_any(is_unusable);
  }

  TORCH_EXT_DEVICE void store_rows(const Operand& result, const Side& own, int head,
                                   const Gradient& x, float factor) {
    E* const data = head_data<E>(p.problem, result, head, own.group);
    TORCH_EXT_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int i = rows.of_thread() + 8 * r;
      store_row(i < own.length ? data + i * result.row_stride : nullptr, x, r, factor);
    }
  }

  TORCH_EXT_DEVICE void store_exact_rows(int head) {
    for (int r = 0; r < 16; ++r) {
      const int i = rows.of_warp() + r;
      if (i < p.visibility.own_length) store_exact_gradients<E, Tiles>(p, head, i);
    }
  }
};

}  // namespace torch_ext::cuda::hopper
