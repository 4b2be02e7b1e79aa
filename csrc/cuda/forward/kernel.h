// The forward for every dtype, option and size:  o = softmax(scores) v,  lse = log sum exp(scores).
//
// Task: a tile of rows, a slice of o's columns, and all keys or, where there are few queries, a
// split of them: splits are merged afterwards (merge.h). Rows are the queries of one head or, where
// there are few, of all heads that read the same keys: row r is query r % N of head first + r / N.
// It walks over the tiles of keys with a running maximum m, sum l and output of every row:
//   s = scores(q k^T),  m' = max(m, s),  p = exp(s - m'),  f = exp(m - m')
//   l = f l + rowsum(p),  o = f o + (z p) v
// and reads q, k and v once.
#pragma once

#include "cuda/forward/plan.h"
#include "cuda/forward/rows.h"
#include "cuda/tile/pipeline.h"
#include "cuda/tile/product.h"
#include "cuda/tile/statistics.h"

namespace torch_ext::cuda {

template <class E, int kWarps, int kSlice>
class ForwardTask {
  using T = AccumulateOf<E>;
  static constexpr int kOther = kTile<E>;
  using Scores = Fragment<T, kOther>;

 public:
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = kWarps * 16;
  using Chunks = Pipeline<E, kRows, kOther, kThreads>;

  TORCH_EXT_DEVICE ForwardTask(const ForwardParameters& parameters, unsigned char* memory)
      : x_(parameters), p_(parameters.problem), chunks_(memory, parameters.keeps_own) {}

  TORCH_EXT_DEVICE void run(const ForwardTaskIndex& task) {
    task_ = task;
    row_ = task.tile * kRows;
    // 0 times what is hidden is NaN, where that is inf or NaN: then once more, without it.
    bool is_exact = false;
    TORCH_EXT_KEEP_LOOP
    for (bool again = true; again; is_exact = true) {
      attempt(is_exact);
      again = block_any(has_hidden_ && !all_finite(o_)) && !is_exact;
    }
    store();
  }

 private:
  TORCH_EXT_DEVICE void attempt(bool is_exact) {
    const TileRange keys = keys_of_split();
    block_barrier();
    if (thread_index() == 0) describe_task();
    block_barrier();
    chunks_.start(row_, {keys.begin, keys.end, 1});
    clear();
    for (int tile = keys.begin; tile < keys.end; ++tile)
      visit(static_cast<int64_t>(tile) * kOther, is_exact);
    chunks_.finish();
  }

  TORCH_EXT_DEVICE TileRange keys_of_split() const {
    TileRange keys = visible_key_tiles(p_, first_query(), queries(), kOther);
    const int64_t first = task_.split * x_.split_tiles, last = first + x_.split_tiles;
    if (keys.begin < first) keys.begin = static_cast<int>(first);
    if (keys.end > last) keys.end = static_cast<int>(last);
    return keys.begin < keys.end ? keys : TileRange{0, 0};
  }

  TORCH_EXT_DEVICE void describe_task() {
    TaskMatrices<E>& task = chunks_.task();
    task = {};
    task.own[0] = query_matrix<E>(p_, p_.query, task_.head, p_.head_size);
    task.own[0].rows = x_.rows();
    task.other[0] = key_matrix<E>(p_, p_.key, task_.head, p_.head_size);
    task.other[1] = key_matrix<E>(p_, p_.value, task_.head, p_.value_head_size);
    task.add_product(0, 0, 0);
    task.add_factor(0, 1, task_.slice * kSlice / kChunkColumns<E>, slice_chunks());
  }
  // Chunks of v's columns in this slice.
  TORCH_EXT_DEVICE int slice_chunks() const {
    const int left = chunks_of<E>(p_.value_head_size - task_.slice * kSlice);
    return left < kSlice / kChunkColumns<E> ? left : kSlice / kChunkColumns<E>;
  }

  TORCH_EXT_DEVICE void clear() {
    const bool has_sink = p_.sink && task_.split == 0;
    const LaneRows rows = lane_rows();
    o_.clear();
    has_hidden_ = false;
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const T sink = has_sink ? load<T>(p_.sink, head_offset(p_, p_.sink, rows.head[half])) : T(0);
      const bool counts = has_sink && sink != -kInfinity<T>;
      max_[half] = counts ? sink : -kInfinity<T>;
      // Sums are of this lane's columns until they are stored.
      sum_[half] = counts && lane_index() % 4 == 0 ? T(1) : T(0);
    }
  }

  TORCH_EXT_DEVICE void visit(int64_t key, bool is_exact) {
    Scores s;
    s.clear();
    for (int n = chunks_.task().product_chunks; n > 0; --n) {
      const auto chunk = chunks_.next();
      if (has_rows()) multiply_transposed<E>(s, chunk.own, warp_row(), chunk.other, chunk.columns);
    }
    VisibleBits visible{};
    if (has_rows()) {
      score(key, is_exact, s, visible);
      weigh(s);
      if (p_.seed) {
        Scores copy = s;
        drop_entries(p_, lane_rows(), key, copy);
        s = copy;
      }
    }
    const Weights<E, kOther> weights(s);
    for (int n = chunks_.task().factor_chunks; n > 0; --n) {
      const auto chunk = chunks_.next();
      if (!has_rows()) continue;
      if (is_exact)
        multiply_visible<E>(o_, weights, visible, chunk.other, chunk.index);
      else
        multiply<E>(o_, weights, chunk.other, chunk.index, chunk.columns);
    }
  }

  // Products become scores, hidden ones -inf.
  TORCH_EXT_DEVICE void score(int64_t key, bool is_exact, Scores& s, VisibleBits& visible) {
    if (x_.has_options || is_exact) {
      // Copies, so that only they lie in local memory.
      Scores copy = s;
      VisibleBits bits;
      score_entries(p_, lane_rows(), key, copy, bits);
      s = copy;
      visible = bits;
      has_hidden_ = true;
      return;
    }
    const T scale = static_cast<T>(p_.scale);
    for_each_entry(s, [&](T& entry) { entry *= scale; });
    const ScoreTile<T> tile(p_, task_.head, first_query(), queries(), key, kOther);
    if (tile.is_inside()) return;
    has_hidden_ = true;
    const LaneRows rows = lane_rows();
    const int row[2] = {static_cast<int>(rows.query[0] - first_query()),
                        static_cast<int>(rows.query[1] - first_query())};
    TORCH_EXT_UNROLL
    for (int n = 0; n < kOther / 8; ++n) TORCH_EXT_UNROLL
    for (int c = 0; c < 4; ++c)
      if (!tile.is_in_window(row[c / 2], score_column(n, c % 2))) s.x[n][c] = -kInfinity<T>;
  }

  // Scores become weights exp(s - max), and what came before is scaled to the new max.
  TORCH_EXT_DEVICE void weigh(Scores& s) {
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) {
      T max = max_[half];
      for_each_of_row(s, half, [&](T& entry) { max = larger_of(max, entry); });
      max = quad_max(max);
      // Nothing but -inf so far: exp(-inf - 0) = 0.
      const T shift = max == -kInfinity<T> ? T(0) : max;
      const T factor = exponential<E>(max_[half] - shift);
      T sum = sum_[half] * factor;
      for_each_of_row(s, half, [&](T& entry) {
        entry = exponential<E>(entry - shift);
        sum += entry;
      });
      max_[half] = max;
      sum_[half] = sum;
      for_each_of_row(o_, half, [&](T& entry) { entry *= factor; });
    }
  }

  TORCH_EXT_DEVICE void store() {
    const LaneRows rows = lane_rows();
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const T sum = quad_sum(sum_[half]);
      if (rows.query[half] >= p_.query_length) continue;
      if (x_.splits > 1)
        store_split(half, rows.head[half], rows.query[half], sum);
      else
        store_row(half, rows.head[half], rows.query[half], sum);
    }
  }

  TORCH_EXT_DEVICE void store_row(int half, int64_t head, int64_t row, T sum) {
    if (task_.slice == 0 && lane_index() % 4 == 0) store_logsumexp(p_, head, row, max_[half], sum);
    // Where the sum is 0 so is the output, though weights of 0 may have met inf or NaN.
    const T factor = sum == 0 ? T(0) : 1 / sum;
    E* out = static_cast<E*>(p_.output.data) + head_offset(p_, p_.output, head) +
             row * p_.output.row_stride;
    for_each_column(half, [&](int64_t column, T value) {
      out[column * p_.output.col_stride] = from_float<E>(sum == 0 ? T(0) : value * factor);
    });
  }

  TORCH_EXT_DEVICE void store_split(int half, int64_t head, int64_t row, T sum) {
    const SplitResults<T> results(x_, head, task_.split);
    if (task_.slice == 0 && lane_index() % 4 == 0) {
      results.max[row] = max_[half];
      results.sum[row] = sum;
    }
    T* out = results.output + row * p_.value_head_size;
    for_each_column(half, [&](int64_t column, T value) { out[column] = value; });
  }

  // use(column of o, value) for this lane's part of a row.
  template <class Use>
  TORCH_EXT_DEVICE void for_each_column(int half, const Use& use) {
    TORCH_EXT_UNROLL
    for (int n = 0; n < kSlice / 8; ++n) TORCH_EXT_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      const int64_t column = task_.slice * kSlice + output_column<E>(n, pair);
      if (column < p_.value_head_size) use(column, o_.x[n][2 * half + pair]);
    }
  }

  // Warps without rows only help to copy.
  TORCH_EXT_DEVICE bool has_rows() const { return row_ + warp_row() < x_.rows(); }
  static TORCH_EXT_DEVICE int warp_row() { return warp_index() * 16; }
  // The queries that a task has of each head.
  TORCH_EXT_DEVICE int64_t first_query() const { return x_.heads > 1 ? 0 : row_; }
  TORCH_EXT_DEVICE int queries() const {
    return x_.heads > 1 ? static_cast<int>(p_.query_length) : kRows;
  }
  TORCH_EXT_DEVICE LaneRows lane_rows() const {
    return lane_rows_of(x_, task_.head, row_ + warp_row());
  }

  const ForwardParameters& x_;
  const ForwardProblem& p_;
  Chunks chunks_;
  ForwardTaskIndex task_{};
  int64_t row_ = 0;          // the first
  bool has_hidden_ = false;  // whether some entry may be
  Fragment<T, kSlice> o_;
  T max_[2], sum_[2];
};

template <class E, int kWarps, int kSlice>
struct ForwardKernel {
  using Task = ForwardTask<E, kWarps, kSlice>;
  using Parameters = ForwardParameters;
  static constexpr const char* kName = "attention_forward";
  static constexpr int kThreads = Task::kThreads;
  static constexpr int kBlocksPerProcessor = 8 / kWarps;

  static TORCH_EXT_DEVICE void run(const Parameters& p) {
    Task task(p, shared_memory());
    for (int64_t index = block_index(); index < p.tasks(); index += block_count())
      task.run(p.task(index));
  }
};

}  // namespace torch_ext::cuda
