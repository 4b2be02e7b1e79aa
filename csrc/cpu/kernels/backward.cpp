// (do, dlse, q, k, v, o, lse) -> (dq, dk, dv, dbias), five products a tile.
//
// Task: one cell of backward_plan.h. Loop: query heads of the group, tiles of queries, tiles of
// keys. For a tile
//   s^T = k q^T,  p = exp((c s + b - lse) - residual),  dp^T = v do^T,  ds = p (dp - delta)
//   dv += p^T do,  dk += ds^T q,  dq += ds k,  dbias += ds
// with delta = rowsum(do o) - dlse. c is multiplied into dq and dk when they are written.
// Reads every operand in tiles; keeps dk and dv of the cell and dq of the tile in scratch.
#include "cpu/kernels/backward_plan.h"
#include "cpu/kernels/backward_reduce.h"
#include "cpu/kernels/bias_gradient.h"
#include "cpu/kernels/entry_points.h"
#include "cpu/kernels/scores.h"
#include "cpu/kernels/tiles.h"
#include "cpu/parallel.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
struct BackwardScratch {
  int64_t width;
  T *q, *q_transposed;        // (width, head_columns), (D, width)
  T *dO, *dO_transposed;      // (width, value_columns), (E, width)
  T *lse, *residual, *delta;  // (width)
  T *k, *v;     // (key chunk, …_columns), where they cannot be read in place: converted once a cell
  T* p;         // (keys, width): s, then p
  T* ds;        // (keys, width): dp, then ds
  T* additive;  // (keys, width)
  T* spare;     // for any one tile
  T* dq;        // (width, head_columns), of one tile of queries
  T *dk, *dv;   // (key chunk, head_columns), (key chunk, value_columns)
  int64_t bytes;

  TORCH_EXT_INLINE BackwardScratch(const Problem& problem, const BackwardPlan<T>& plan,
                                   void* memory) {
    Scratch scratch(memory);
    width = round_up(smaller(problem.query_length, kTileQueries), Vec<T>::kSize);
    const int64_t keys = smaller(problem.key_length, kTileKeys);
    const int64_t chunk = smaller(problem.key_length, plan.keys.size);
    q = scratch.take<T>(width * plan.head_columns);
    q_transposed = scratch.take<T>(width * problem.head_size);
    dO = scratch.take<T>(width * plan.value_columns);
    dO_transposed = scratch.take<T>(width * problem.value_head_size);
    lse = scratch.take<T>(width);
    residual = scratch.take<T>(width);
    delta = scratch.take<T>(width);
    k = scratch.take<T>(chunk * plan.head_columns);
    v = scratch.take<T>(chunk * plan.value_columns);
    p = scratch.take<T>(keys * width);
    ds = scratch.take<T>(keys * width);
    additive = scratch.take<T>(keys * width);
    spare = scratch.take<T>(larger(kTileKeys, width) *
                            larger(width, larger(plan.head_columns, plan.value_columns)));
    dq = scratch.take<T>(width * plan.head_columns);
    dk = scratch.take<T>(chunk * plan.head_columns);
    dv = scratch.take<T>(chunk * plan.value_columns);
    bytes = scratch.used();
  }
};

template <class T>
void fill_zero(T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0;
}

// One cell of one key head.
template <class T>
class BackwardTask {
 public:
  BackwardTask(const BackwardProblem& problem, const BackwardPlan<T>& plan,
               BackwardPartials<T> partials, void* memory)
      : problem_(problem), plan_(plan), partials_(partials), x_(problem, plan, memory) {}

  void run(int64_t key_head, int64_t in_wave, int64_t key_chunk, int64_t query_chunk) {
    in_wave_ = in_wave;
    key_chunk_ = key_chunk;
    key_begin_ = key_chunk * plan_.keys.size;
    key_end_ = smaller(problem_.key_length, key_begin_ + plan_.keys.size);
    const int64_t chunk = key_end_ - key_begin_;
    fill_zero(x_.dk, chunk * plan_.head_columns);
    fill_zero(x_.dv, chunk * plan_.value_columns);
    const int64_t first = key_head * problem_.group;
    k_ = rows_in_place_or_packed<T>(problem_.key,
                                    head_offset(problem_, problem_.key, first, problem_.group),
                                    key_begin_, chunk, problem_.head_size, true, x_.k);
    v_ = rows_in_place_or_packed<T>(problem_.value,
                                    head_offset(problem_, problem_.value, first, problem_.group),
                                    key_begin_, chunk, problem_.value_head_size, false, x_.v);

    const int64_t query_begin = query_chunk * plan_.queries.size;
    const int64_t query_end = smaller(problem_.query_length, query_begin + plan_.queries.size);
    for (in_group_ = 0; in_group_ < problem_.group; ++in_group_) {
      const int64_t head = first + in_group_;
      start_bias_gradient(head, query_chunk, query_begin, query_end);
      for (int64_t query = query_begin; query < query_end; query += kTileQueries)
        query_tile({head, query, smaller(kTileQueries, query_end - query), x_.width, 0, 0});
    }
    write_key_gradients(first, query_chunk, chunk);
  }

 private:
  // Where this cell sums its part of the bias gradient, zero unless other heads have added to it.
  void start_bias_gradient(int64_t head, int64_t query_chunk, int64_t query_begin,
                           int64_t query_end) {
    const Operand& dbias = problem_.grad_bias;
    if (plan_.bias == BiasGradient::kDirect)
      dbias_ = static_cast<T*>(dbias.data) + head_offset(problem_, dbias, head);
    if (plan_.bias != BiasGradient::kPrivate) return;
    const int64_t chunk = (plan_.bias_key_chunks > 1 ? key_chunk_ : 0) * plan_.bias_query_chunks +
                          (plan_.bias_query_chunks > 1 ? query_chunk : 0);
    dbias_ = partials_.bias(plan_, in_wave_, in_group_, chunk);
    if (in_group_ > 0 && plan_.bias_heads == 1) return;
    const int64_t row_end = dbias.row_stride ? query_end : query_begin + 1;
    const int64_t col_end = dbias.col_stride ? key_end_ : key_begin_ + 1;
    for (int64_t i = query_begin; i < row_end; ++i)
      for (int64_t j = key_begin_; j < col_end; ++j)
        dbias_[i * dbias.row_stride + j * dbias.col_stride] = 0;
  }

  // All keys of the cell for one tile of queries.
  void query_tile(TileRange t) {
    const int64_t key_end = smaller(key_end_, visible_key_end(problem_, t.query + t.queries));
    const bool sees_keys = key_end > key_begin_;
    if (sees_keys) pack_queries(t);
    fill_zero(x_.dq, t.queries * plan_.head_columns);
    for (t.key = key_begin_; t.key < key_end; t.key += kTileKeys) {
      t.keys = smaller(kTileKeys, key_end - t.key);
      tile(t);
    }
    if (!problem_.grad_query) return;
    if (plan_.dq_partial) {
      T* out = partials_.dq(plan_, problem_, in_wave_, in_group_, key_chunk_) +
               t.query * plan_.head_columns;
      __builtin_memcpy(out, x_.dq, static_cast<size_t>(t.queries * plan_.head_columns) * sizeof(T));
    } else {
      write_rows<T>(x_.dq, plan_.head_columns, t.queries, problem_.head_size,
                    static_cast<T>(problem_.scale), problem_.grad_query,
                    head_offset(problem_, problem_.grad_query, t.head), t.query);
    }
  }

  // delta = rowsum(do o), in the same chains as dp^T = v do^T: where a row sees one key, o = v and
  // dp - delta is exactly 0.
  void set_row_products(const T* dO, const T* o, int64_t size) {
    using V = Vec<T>;
    for (int64_t i = 0; i < x_.width; i += V::kSize) {
      V delta = V::fill(0);
      for (int64_t begin = 0; begin < size; begin += kChain) {
        V chain = V::fill(0);
        for (int64_t e = begin; e < smaller(size, begin + kChain); ++e)
          chain = fma(V::load(dO + e * x_.width + i), V::load(o + e * x_.width + i), chain);
        delta = delta + chain;
      }
      delta.store(x_.delta + i);
    }
  }

  // q, do and the row statistics. delta = rowsum(do o) - dlse.
  void pack_queries(const TileRange& t) {
    const BackwardProblem& p = problem_;
    const int64_t q_offset = head_offset(p, p.query, t.head);
    pack_transposed<T>(p.query, q_offset, t.query, t.queries, p.head_size, x_.q_transposed,
                       x_.width);
    q_ = rows_in_place_or_packed<T>(p.query, q_offset, t.query, t.queries, p.head_size, true, x_.q);
    fill_zero(x_.delta, x_.width);
    if (p.grad_output) {
      const int64_t do_offset = head_offset(p, p.grad_output, t.head);
      pack_transposed<T>(p.grad_output, do_offset, t.query, t.queries, p.value_head_size,
                         x_.dO_transposed, x_.width);
      dO_ = rows_in_place_or_packed<T>(p.grad_output, do_offset, t.query, t.queries,
                                       p.value_head_size, true, x_.dO);
      T* o = x_.spare;
      pack_transposed<T>(p.output, head_offset(p, p.output, t.head), t.query, t.queries,
                         p.value_head_size, o, x_.width);
      set_row_products(x_.dO_transposed, o, p.value_head_size);
    }
    const int64_t lse_offset = head_offset(p, p.logsumexp, t.head);
    const int64_t residual_offset = head_offset(p, p.logsumexp_residual, t.head);
    const int64_t dlse_offset = head_offset(p, p.grad_logsumexp, t.head);
    for (int64_t i = 0; i < x_.width; ++i) {
      const bool inside = i < t.queries;
      const T lse = inside ? row_value<T>(p.logsumexp, lse_offset, t.query + i) : T(0);
      // In an empty row every entry is hidden: exp(-inf - 0) = 0.
      x_.lse[i] = lse == -kInfinity<T> ? T(0) : lse;
      x_.residual[i] =
          inside ? row_value<T>(p.logsumexp_residual, residual_offset, t.query + i) : T(0);
      if (inside && p.grad_logsumexp)
        x_.delta[i] -= row_value<T>(p.grad_logsumexp, dlse_offset, t.query + i);
    }
  }

  void tile(const TileRange& t) {
    const BackwardProblem& p = problem_;
    const Visibility seen = additive_tile<T>(p, t, x_.additive, x_.spare);
    if (seen == Visibility::kNone) return;
    const int64_t width = x_.width, head_columns = plan_.head_columns,
                  value_columns = plan_.value_columns;
    const bool needs_ds = p.grad_query || p.grad_key || p.grad_bias;

    // s^T = k q^T,  dp^T = v do^T
    const int64_t row = t.key - key_begin_;
    const Rows<const T> k{k_.data + row * k_.stride, k_.stride},
        v{v_.data + row * v_.stride, v_.stride};
    tile_product<T, false>(t.keys, width, p.head_size, {k.data, k.stride, 1},
                           {x_.q_transposed, width}, {x_.p, width});
    if (needs_ds && p.grad_output) {
      tile_product<T, false>(t.keys, width, p.value_head_size, {v.data, v.stride, 1},
                             {x_.dO_transposed, width}, {x_.ds, width});
    } else {
      fill_zero(x_.ds, t.keys * width);
    }
    if (seen == Visibility::kAll)
      weights_and_gradients<false>(t.keys);
    else
      weights_and_gradients<true>(t.keys);

    if (p.grad_value && p.grad_output)  // dv += p^T do
      weighted_sum<T>(t.keys, value_columns, t.queries, {x_.p, width, 1}, seen, x_.additive, dO_,
                      {x_.dv + row * value_columns, value_columns}, x_.spare);
    if (p.grad_key)  // dk += ds^T q
      weighted_sum<T>(t.keys, head_columns, t.queries, {x_.ds, width, 1}, seen, x_.additive, q_,
                      {x_.dk + row * head_columns, head_columns}, x_.spare);
    if (p.grad_query)  // dq += ds k
      weighted_sum<T>(t.queries, head_columns, t.keys, {x_.ds, 1, width}, seen, x_.additive, k,
                      {x_.dq, head_columns}, x_.spare);
    if (p.grad_bias)
      add_bias_gradient<T>(t, x_.ds, dbias_, p.grad_bias.row_stride, p.grad_bias.col_stride,
                           x_.spare);
  }

  // p = exp((c s + b - lse) - residual),  ds = p (dp - delta), both 0 where hidden.
  template <bool kAdditive>
  void weights_and_gradients(int64_t keys) {
    using V = Vec<T>;
    const V scale = V::fill(static_cast<T>(problem_.scale));
    const V hidden = V::fill(-kInfinity<T>);
    for (int64_t i = 0; i < x_.width; i += V::kSize) {
      const V lse = V::load(x_.lse + i), residual = V::load(x_.residual + i),
              delta = V::load(x_.delta + i);
      for (int64_t j = 0; j < keys; ++j) {
        const int64_t entry = j * x_.width + i;
        V s = V::load(x_.p + entry);
        s = kAdditive ? masked_score(s, scale, V::load(x_.additive + entry)) : s * scale;
        V p = exp((s - lse) - residual);
        V ds = p * (V::load(x_.ds + entry) - delta);
        if constexpr (kAdditive) {  // also in rows whose lse, or dp or delta, is inf or NaN
          const V additive = V::load(x_.additive + entry);
          p = if_equal(additive, hidden, V::fill(0), p);
          ds = if_equal(additive, hidden, V::fill(0), ds);
        }
        p.store(x_.p + entry);
        ds.store(x_.ds + entry);
      }
    }
  }

  void write_key_gradients(int64_t head, int64_t query_chunk, int64_t chunk) {
    const BackwardProblem& p = problem_;
    const auto write = [&](T* sums, int64_t columns, int64_t cols, T factor, const Operand& out,
                           T* partial) {
      if (partial)
        __builtin_memcpy(partial + key_begin_ * columns, sums,
                         static_cast<size_t>(chunk * columns) * sizeof(T));
      else
        write_rows<T>(sums, columns, chunk, cols, factor, out, head_offset(p, out, head, p.group),
                      key_begin_);
    };
    if (p.grad_key)
      write(x_.dk, plan_.head_columns, p.head_size, static_cast<T>(p.scale), p.grad_key,
            plan_.dk_partial ? partials_.dk(plan_, p, in_wave_, query_chunk) : nullptr);
    if (p.grad_value)
      write(x_.dv, plan_.value_columns, p.value_head_size, T(1), p.grad_value,
            plan_.dv_partial ? partials_.dv(plan_, p, in_wave_, query_chunk) : nullptr);
  }

  const BackwardProblem& problem_;
  const BackwardPlan<T>& plan_;
  BackwardPartials<T> partials_;
  BackwardScratch<T> x_;
  int64_t in_wave_ = 0, in_group_ = 0, key_chunk_ = 0, key_begin_ = 0, key_end_ = 0;
  Rows<const T> k_{}, v_{}, q_{}, dO_{};
  T* dbias_ = nullptr;
};

template <class T>
void run_backward(const BackwardProblem& p) {
  const BackwardPlan<T> plan(p);
  const BackwardScratch<T> size(p, plan, nullptr);
  const int64_t heads = p.key_heads(), cells = plan.cells();
  const int64_t bytes = plan.wave * plan.partial() * static_cast<int64_t>(sizeof(T));
  const Buffer buffer(bytes);
  const BackwardPartials<T> partials{static_cast<T*>(buffer.data())};

  for (int64_t first = 0; first < heads; first += plan.wave) {
    const int64_t wave = smaller(plan.wave, heads - first);
    parallel_tasks(wave * cells, size.bytes, [&](int64_t task, void* scratch) {
      const int64_t in_wave = task / cells, cell = task % cells;
      BackwardTask<T>(p, plan, partials, scratch)
          .run(first + in_wave, in_wave, cell / plan.queries.count, cell % plan.queries.count);
    });
    if (plan.dq_partial) reduce_query_gradients(p, plan, partials, first, wave);
    if (plan.dk_partial || plan.dv_partial) reduce_key_gradients(p, plan, partials, first, wave);
    if (plan.bias_partial) reduce_bias_gradient(p, plan, partials, first, wave);
  }
}

}  // namespace

void backward(const BackwardProblem& problem) {
  if (problem.query.dtype == DType::Float64)
    run_backward<double>(problem);
  else
    run_backward<float>(problem);
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
