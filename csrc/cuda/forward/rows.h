// What a lane does with its two rows of scores, entry by entry: every option, and dropout. Loops
// are rolled and work on copies in local memory, or code and registers would be many times as many.
#pragma once

#include "cuda/forward/plan.h"
#include "cuda/tile/dropout.h"
#include "cuda/tile/scores.h"

namespace torch_ext::cuda {

// Which query of which head a lane's rows are. What lies beyond the queries is hidden.
struct LaneRows {
  int64_t head[2], query[2];

  // Heads differ where a task has the rows of several.
  TORCH_EXT_DEVICE int heads() const { return head[0] == head[1] ? 1 : 2; }
  TORCH_EXT_DEVICE bool is_of(int half, int n) const { return head[half] == head[n]; }
};

// Of the warp whose first row is `first_row`, in a task whose first head is `first_head`.
TORCH_EXT_DEVICE LaneRows lane_rows_of(const ForwardParameters& x, int64_t first_head,
                                       int64_t first_row) {
  LaneRows rows;
  TORCH_EXT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first_row + fragment_row(half), n = x.problem.query_length;
    const bool exists = row < x.rows(), folds = x.heads > 1;
    rows.head[half] = first_head + (folds && exists ? row / n : 0);
    rows.query[half] = !folds ? row : exists ? row % n : n;
  }
  return rows;
}

// Products become scores with every option, hidden ones -inf, and `visible` says which those are.
template <class T, int kColumns>
TORCH_EXT_DEVICE_FUNCTION void score_entries(const Problem& p, const LaneRows& rows, int64_t key,
                                             Fragment<T, kColumns>& s, VisibleBits& visible) {
  visible = {};
  TORCH_EXT_KEEP_LOOP
  for (int head = 0; head < rows.heads(); ++head) {
    const ScoreTile<T> tile(p, rows.head[head], rows.query[head], 16, key, kColumns);
    for_each_entry_rolled<kColumns>([&](int n, int c) {
      if (!rows.is_of(c / 2, head)) return;
      T& entry = s.x[n][c];
      const int row = static_cast<int>(rows.query[c / 2] - rows.query[head]);
      const Score<T> score = tile.score(row, score_column(n, c % 2), entry);
      entry = score.is_visible ? score.value : -kInfinity<T>;
      visible.set(n, c, score.is_visible);
    });
  }
}

// Weights become z times themselves.
template <class T, int kColumns>
TORCH_EXT_DEVICE_FUNCTION void drop_entries(const Problem& p, const LaneRows& rows, int64_t key,
                                            Fragment<T, kColumns>& weights) {
  TORCH_EXT_KEEP_LOOP
  for (int head = 0; head < rows.heads(); ++head) {
    const Dropout<T> dropout(p, rows.head[head]);
    for_each_entry_rolled<kColumns>([&](int n, int c) {
      if (rows.is_of(c / 2, head))
        weights.x[n][c] *= dropout(rows.query[c / 2], key + score_column(n, c % 2));
    });
  }
}

}  // namespace torch_ext::cuda
