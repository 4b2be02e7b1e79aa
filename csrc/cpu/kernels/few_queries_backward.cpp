// (do, dlse, q, k, v, o, lse) -> (dq, dk, dv, dslopes, dsink) for few queries.
//
// Task: one chunk of the keys of a key head, with all rows that read it; loop: tiles of keys.
//   s = q k^T,  p = exp((s - lse) - residual),  dp = z (do v^T),  ds = p (dp - delta),  ds0 = t ds
//   dv = (z p)^T do,  dk = c ds0^T q,  dq += ds0 k
// Reads k and v and writes dk and dv once; dq of the chunks is added in their order.
#include "cpu/kernels/derivatives/backward_plan.h"
#include "cpu/kernels/derivatives/option_gradients.h"
#include "cpu/kernels/entry_points.h"
#include "cpu/kernels/few_queries/few_queries.h"
#include "cpu/kernels/few_queries/key_gradients.h"
#include "cpu/kernels/tile/dropout.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Keys whose gradients are computed and written at a time where key_gradients.h does not write
// them.
constexpr int64_t kWriteKeys = 16;

template <class T>
struct FewBackwardScratch {
  int64_t rows;               // group * N
  int64_t columns;            // D in whole vectors
  int64_t value_columns;      // E in whole vectors
  T *q, *dO;                  // (rows, columns), (rows, value_columns)
  T *lse, *residual, *delta;  // (rows)
  T* p;                       // (rows, keys): s, then the weights that multiply do
  T* ds;                      // (rows, keys): dp, then the gradient of the scores
  T* ds0;                     // (rows, keys): of c q k; ds itself without softcap
  T* additive;                // (rows, keys)
  T* z;                       // (rows, keys), with dropout
  T *stored, *spare;          // for a tile of k or v, or of q or do
  T* dk;                      // (kWriteKeys, columns or value_columns)
  T *dq_tile, *dq;            // (rows, columns)
  int64_t bytes;

  FewBackwardScratch(const Problem& problem, const Cut& cut, void* memory) {
    Scratch scratch(memory);
    rows = problem.group * problem.query_length;
    columns = round_up(problem.head_size, Vec<T>::kSize);
    value_columns = round_up(problem.value_head_size, Vec<T>::kSize);
    const int64_t keys = row_width(smaller(problem.key_length, cut.row_keys));
    const int64_t widest = larger(columns, value_columns), tile = rows * keys;
    q = scratch.take<T>(rows * columns);
    dO = scratch.take<T>(rows * value_columns);
    lse = scratch.take<T>(rows);
    residual = scratch.take<T>(rows);
    delta = scratch.take<T>(rows);
    p = scratch.take<T>(tile);
    ds = scratch.take<T>(tile);
    ds0 = problem.softcap > 0 ? scratch.take<T>(tile) : ds;
    additive = scratch.take<T>(tile);
    z = scratch.take<T>(problem.dropout_p > 0 ? tile : 0);
    stored = scratch.take<T>(larger(1, keys) * widest);
    spare = scratch.take<T>(larger(keys * problem.query_length, larger(rows, keys) * widest));
    dk = scratch.take<T>(kWriteKeys * widest);
    dq_tile = scratch.take<T>(rows * columns);
    dq = scratch.take<T>(rows * columns);
    bytes = scratch.used();
  }
};

template <class T>
class FewBackwardTask {
 public:
  FewBackwardTask(const BackwardProblem& problem, const Cut& cut, const Problem& transposed,
                  int64_t key_head, void* memory)
      : problem_(problem),
        cut_(cut),
        transposed_(transposed),
        rule_(problem),
        x_(problem, cut, memory),
        head_(key_head * problem.group),
        streams_(streams_results(problem.key_heads() * problem.key_length *
                                 (problem.head_size + problem.value_head_size) *
                                 static_cast<int64_t>(sizeof(T)))) {}

  // Keys [begin, end). Where not null, `dq` (rows, columns) receives this chunk's share without the
  // factor c, and `slopes` the slope gradients, one for each head.
  void run(int64_t begin, int64_t end, T* dq, double* slopes) {
    load_rows();
    slopes_ = slopes;
    for (int64_t h = 0; slopes && h < problem_.group; ++h) slopes[h] = 0;
    fill_zero(x_.dq, x_.rows * x_.columns);
    for (int64_t key = begin; key < end; key += cut_.row_keys) {
      RowTile t{head_, problem_.group, key, smaller(cut_.row_keys, end - key), 0};
      t.width = row_width(t.keys);
      add_tile(t);
    }
    if (streams_) finish_streams();
    if (!problem_.grad_query) return;
    if (dq)
      __builtin_memcpy(dq, x_.dq, static_cast<size_t>(x_.rows * x_.columns) * sizeof(T));
    else
      write_query_gradients();
  }

 private:
  using V = Vec<T>;

  StoredRows keys_of(const Operand& x, const RowTile& t, int64_t cols) const {
    return {x, head_offset(problem_, x, head_, problem_.group), t.key, t.keys, cols};
  }

  // q, do, lse and delta = rowsum(do o) - dlse, as products of rows like dp = do v^T: where a row
  // sees one key, o = v and dp - delta is exactly 0.
  void load_rows() {
    const BackwardProblem& p = problem_;
    const int64_t n = p.query_length;
    for (int64_t h = 0; h < p.group; ++h) {
      const int64_t head = head_ + h, row = h * n;
      pack_rows<T>(p.query, head_offset(p, p.query, head), 0, n, p.head_size,
                   x_.q + row * x_.columns, x_.columns);
      if (p.grad_output)
        pack_rows<T>(p.grad_output, head_offset(p, p.grad_output, head), 0, n, p.value_head_size,
                     x_.dO + row * x_.value_columns, x_.value_columns);
      load_row_statistics(p, TileRange{head, 0, n, n, 0, 0}, x_.lse + row, x_.residual + row);
      for (int64_t i = 0; i < n; ++i) x_.delta[row + i] = row_delta(head, i, row + i);
    }
    is_finite_ = all_finite(x_.q, x_.rows * x_.columns) &&
                 (!p.grad_output || all_finite(x_.dO, x_.rows * x_.value_columns));
  }

  T row_delta(int64_t head, int64_t query, int64_t row) const {
    const BackwardProblem& p = problem_;
    T product[row_width(1)] = {};
    const StoredRows o{p.output, head_offset(p, p.output, head), query, 1, p.value_head_size};
    if (p.grad_output)
      row_products<T>(1, {x_.dO + row * x_.value_columns, 0}, o, {product, 0}, x_.stored);
    if (!p.grad_logsumexp) return product[0];
    return product[0] -
           row_value<T>(p.grad_logsumexp, head_offset(p, p.grad_logsumexp, head), query);
  }

  void add_tile(const RowTile& t) {
    const BackwardProblem& p = problem_;
    const Visibility seen = additive_rows<T>(transposed_, t, x_.additive, x_.spare);
    const bool needs_ds = p.grad_query || p.grad_key || p.grad_slopes;
    if (seen != Visibility::kNone) weigh(t, seen, needs_ds);
    const bool has_dv = p.grad_output && seen != Visibility::kNone;
    if (p.grad_key)
      write_gradients(t, seen, seen == Visibility::kNone ? nullptr : x_.ds0, x_.q, x_.columns,
                      static_cast<T>(p.scale), p.grad_key, p.head_size);
    if (p.grad_value)
      write_gradients(t, seen, has_dv ? x_.p : nullptr, x_.dO, x_.value_columns, T(1), p.grad_value,
                      p.value_head_size);
    if (seen == Visibility::kNone) return;
    if (p.grad_query) {
      weigh_tile<T>(x_.rows, t, x_.ds0, seen, x_.additive, keys_of(p.key, t, p.head_size),
                    {x_.dq_tile, x_.columns}, x_.stored, x_.spare);
      for (int64_t i = 0; i < x_.rows * x_.columns; ++i) x_.dq[i] += x_.dq_tile[i];
    }
    for (int64_t h = 0; slopes_ && h < p.group; ++h) {
      const int64_t n = p.query_length;
      slopes_[h] += slope_gradient(transposed_, TileRange{t.head + h, t.key, t.keys, t.width, 0, n},
                                   x_.ds + h * n * t.width);
    }
  }

  // Fills p, ds and ds0.
  void weigh(const RowTile& t, Visibility seen, bool needs_ds) {
    const BackwardProblem& p = problem_;
    const int64_t count = x_.rows * t.width;
    row_products<T>(x_.rows, {x_.q, x_.columns}, keys_of(p.key, t, p.head_size), {x_.p, t.width},
                    x_.stored);
    if (needs_ds && p.grad_output)
      row_products<T>(x_.rows, {x_.dO, x_.value_columns}, keys_of(p.value, t, p.value_head_size),
                      {x_.ds, t.width}, x_.stored);
    else
      fill_zero(x_.ds, count);
    const bool has_dropout = p.dropout_p > 0;
    if (has_dropout) {
      dropout_rows(p, t, x_.z);
      multiply_tile(count, x_.z, x_.ds);
    }
    with_score_kind(seen, rule_.is_capped, [&](auto additive, auto capped) {
      for (int64_t i = 0; i < x_.rows; ++i)
        for (int64_t j = 0; j < t.width; j += V::kSize)
          weigh_keys<additive.value, capped.value>(i, i * t.width + j);
    });
    if (has_dropout) multiply_tile(count, x_.z, x_.p);
  }

  template <bool kAdditive, bool kCapped>
  TORCH_EXT_INLINE void weigh_keys(int64_t row, int64_t entry) const {
    V u = V::fill(0);
    const V additive = kAdditive ? V::load(x_.additive + entry) : V::fill(0);
    const V p = weight<kAdditive, kCapped>(rule_, V::load(x_.p + entry), additive,
                                           V::fill(x_.lse[row]), V::fill(x_.residual[row]), &u);
    const V ds = p * (V::load(x_.ds + entry) - V::fill(x_.delta[row]));
    p.store(x_.p + entry);
    unless_hidden<kAdditive>(additive, ds).store(x_.ds + entry);
    if constexpr (kCapped)
      unless_hidden<kAdditive>(additive, rule_.cap_slope(u) * ds).store(x_.ds0 + entry);
  }

  // out(keys) = factor W^T B, zero where `w` is null: W (rows, width) and B (rows, columns).
  void write_gradients(const RowTile& t, Visibility seen, const T* w, const T* b, int64_t columns,
                       T factor, const Operand& out, int64_t cols) const {
    const int64_t offset = head_offset(problem_, out, head_, problem_.group);
    const int64_t rows = w ? x_.rows : 0;
    if ((!w || seen == Visibility::kAll || is_finite_) &&
        write_key_gradients<T>(rows, {w ? w : x_.p, t.width}, {b, columns}, factor,
                               {out, offset, t.key, t.keys, cols, streams_}))
      return;
    for (int64_t j = 0; j < t.keys; j += kWriteKeys) {
      const int64_t keys = smaller(kWriteKeys, t.keys - j);
      if (w)
        weighted_sum<T, false>(keys, columns, x_.rows, {w + j, 1, t.width}, seen,
                               {x_.additive + j, 1, t.width}, {b, columns}, {x_.dk, columns},
                               x_.spare);
      else
        fill_zero(x_.dk, keys * columns);
      write_rows<T>(x_.dk, columns, keys, cols, factor, out, offset, t.key + j);
    }
  }

  void write_query_gradients() const {
    const int64_t n = problem_.query_length;
    const Operand& dq = problem_.grad_query;
    for (int64_t h = 0; h < problem_.group; ++h)
      write_rows<T>(x_.dq + h * n * x_.columns, x_.columns, n, problem_.head_size,
                    static_cast<T>(problem_.scale), dq, head_offset(problem_, dq, head_ + h), 0);
  }

  const BackwardProblem& problem_;
  const Cut& cut_;
  const Problem& transposed_;
  ScoreRule<T> rule_;
  FewBackwardScratch<T> x_;
  int64_t head_;    // the first query head that reads the keys
  bool streams_;    // dk and dv go past the caches
  bool is_finite_;  // q and do are: 0 times them is 0
  double* slopes_ = nullptr;
};

template <class T>
void run_few_backward(const BackwardProblem& p) {
  const Cut cut = cut_of<T>(p);
  const FewBackwardScratch<T> size(p, cut, nullptr);
  const Chunks chunks = cut.row_chunks;
  const Problem flipped = transposed(p);
  const int64_t n = p.query_length, heads = p.key_heads(), columns = size.columns;
  // dq of one wave: (key heads, chunks, group * N, columns)
  const bool has_partials = p.grad_query && chunks.count > 1;
  const int64_t step = size.rows * columns;
  const int64_t bytes = has_partials ? chunks.count * step * static_cast<int64_t>(sizeof(T)) : 0;
  const int64_t wave = heads_at_once(heads, bytes);
  const Buffer buffer(wave * bytes);
  T* const partials = static_cast<T*>(buffer.data());
  const SlopeSums slopes(p, chunks.count);

  for (int64_t first = 0; first < heads; first += wave) {
    const int64_t count = smaller(wave, heads - first);
    const auto chunk_task = [&](int64_t task, void* scratch) {
      const int64_t head = first + task / chunks.count, chunk = task % chunks.count;
      FewBackwardTask<T>(p, cut, flipped, head, scratch)
          .run(chunks.begin(chunk), smaller(p.key_length, chunks.begin(chunk + 1)),
               has_partials ? partials + task * step : nullptr, slopes.of(head, chunk));
    };
    parallel_tasks(count * chunks.count, size.bytes, chunk_task, most_threads(p));
    if (!has_partials) continue;
    const int64_t of_head = n * columns;
    const auto head_task = [&](int64_t task, void* scratch) {
      const int64_t in_wave = task / p.group, in_group = task % p.group;
      const int64_t head = (first + in_wave) * p.group + in_group;
      reduce_rows<T>(partials + in_wave * chunks.count * step + in_group * of_head, step,
                     chunks.count, n, columns, p.head_size, static_cast<T>(p.scale), p.grad_query,
                     head_offset(p, p.grad_query, head), 0, static_cast<T*>(scratch));
    };
    parallel_tasks(count * p.group, of_head * static_cast<int64_t>(sizeof(T)), head_task,
                   most_threads(p));
  }
  slopes.template write<T>(p);
  if (p.grad_sink) sink_gradient<T>(p, RowStatistics<T>{});
}

}  // namespace

void few_queries_backward(const BackwardProblem& problem) {
  if (problem.query.dtype == DType::Float64)
    run_few_backward<double>(problem);
  else
    run_few_backward<float>(problem);
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
