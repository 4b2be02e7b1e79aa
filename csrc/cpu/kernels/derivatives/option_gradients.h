// Gradients of the options: bias, slopes and sinks.
//
// A tile of score gradients is summed into that of a bias over the dimensions the bias was
// broadcast along. Sums for the numbers per head, slopes and sinks, are kept in double, one for
// each part of a head, added in the order of heads and parts and rounded once.
#pragma once

#include "cpu/kernels/derivatives/backward_plan.h"
#include "cpu/kernels/derivatives/row_statistics.h"
#include "cpu/kernels/tile/weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// The first head that shares its part of `x` with `head`: index 0 along broadcast dimensions.
TORCH_EXT_INLINE int64_t first_sharing_head(const Problem& p, const Operand& x, int64_t head) {
  int64_t first = 0, step = 1;
  for (int d = p.leading_dims - 1; d >= 0; --d) {
    if (x.leading_strides[d] != 0) first += head % p.leading_sizes[d] * step;
    head /= p.leading_sizes[d];
    step *= p.leading_sizes[d];
  }
  return first;
}

TORCH_EXT_INLINE bool is_first_sharing_head(const Problem& p, const Operand& x, int64_t head) {
  return first_sharing_head(p, x, head) == head;
}

// `x`, of queries i, i + 1, …, but 0 for those from `queries` on.
template <class T>
TORCH_EXT_INLINE Vec<T> before(int64_t queries, int64_t i, Vec<T> x) {
  using V = Vec<T>;
  const V query = V::fill(static_cast<T>(i)) + V::iota();
  return if_less(query, V::fill(static_cast<T>(queries)), x, V::fill(0));
}

// ---- bias ----

// out(i, j) += ds(i, j), out(i, j) at out[i * row + j * col] with stride 0 where broadcast. ds lies
// transposed, keys down; entries beyond `queries` are ignored. `spare` holds the tile the other way
// round.
template <class T>
void add_bias_gradient(const TileRange& t, const T* ds, T* out, int64_t row, int64_t col,
                       T* spare) {
  using V = Vec<T>;
  out += t.query * row + t.key * col;
  if (row != 0 && col != 0) {
    transpose_tile<T, T>({ds, t.width, 1}, t.keys, t.queries, spare, t.keys);
    for (int64_t i = 0; i < t.queries; ++i) {
      const T* from = spare + i * t.keys;
      if (col == 1)
        for (int64_t j = 0; j < t.keys; ++j) out[i * row + j] += from[j];
      else
        for (int64_t j = 0; j < t.keys; ++j) out[i * row + j * col] += from[j];
    }
  } else if (row != 0) {
    for (int64_t j = 0; j < t.keys; ++j)
      for (int64_t i = 0; i < t.queries; ++i) out[i * row] += ds[j * t.width + i];
  } else {
    for (int64_t j = 0; j < t.keys; ++j) {
      V sum = V::fill(0);
      for (int64_t i = 0; i < t.width; i += V::kSize)
        sum = sum + before(t.queries, i, V::load(ds + j * t.width + i));
      out[j * col] += sum_lanes(sum);
    }
  }
}

// The same, = instead of +=, for a gradient that is not broadcast along queries or keys. Row after
// row: 2^n columns of stores would share a few sets of the cache.
template <class T>
void write_bias_gradient(const TileRange& t, const T* ds, T* out, int64_t row, int64_t col,
                         T* spare) {
  transpose_tile<T, T>({ds, t.width, 1}, t.keys, t.queries, spare, t.keys);
  out += t.query * row + t.key * col;
  for (int64_t i = 0; i < t.queries; ++i)
    for (int64_t j = 0; j < t.keys; ++j) out[i * row + j * col] = spare[i * t.keys + j];
}

// out(i, j) = 0
template <class T>
void zero_bias_gradient(const TileRange& t, T* out, int64_t row, int64_t col) {
  out += t.query * row + t.key * col;
  for (int64_t i = 0; i < (row ? t.queries : 1); ++i)
    for (int64_t j = 0; j < (col ? t.keys : 1); ++j) out[i * row + j * col] = 0;
}

// What the cells of a wave left, element by element over its heads and chunks in their order: heads
// that share a slice add up in index order, and the first of them writes.
template <class T>
void reduce_bias_gradient(const BackwardProblem& p, const BackwardPlan<T>& plan,
                          BackwardPartials<T> partials, int64_t first, int64_t heads) {
  constexpr int64_t kBlockElements = 1024;
  const int64_t blocks = divide_up(plan.bias_slice, kBlockElements);
  const auto block_task = [&](int64_t block, void*) {
    const int64_t begin = block * kBlockElements,
                  count = smaller(kBlockElements, plan.bias_slice - begin);
    for (int64_t i = 0; i < heads * plan.bias_heads; ++i) {
      const int64_t in_wave = i / plan.bias_heads, in_group = i % plan.bias_heads;
      const int64_t head = (first + in_wave) * p.group + in_group;
      T* out = static_cast<T*>(p.grad_bias.data) + begin + head_offset(p, p.grad_bias, head);
      if (is_first_sharing_head(p, p.grad_bias, head)) fill_zero(out, count);
      for (int64_t chunk = 0; chunk < plan.bias_chunks(); ++chunk) {
        const T* in = partials.bias(plan, in_wave, in_group, chunk) + begin;
        for (int64_t e = 0; e < count; ++e) out[e] += in[e];
      }
    }
  };
  parallel_tasks(blocks, 0, block_task, most_threads(p));
}

// ---- slopes and sinks ----

// sums[0] + sums[step] + …, `parts` of them.
TORCH_EXT_INLINE double sum_parts(const double* sums, int64_t step, int64_t parts) {
  double sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += sums[part * step];
  return sum;
}

// x[head] = sum_of(head), summed over the heads that share it, for all heads.
template <class T, class SumOf>
void write_head_sums(const Problem& p, const Operand& x, const SumOf& sum_of) {
  const int64_t heads = p.query_heads();
  const Buffer buffer(heads * static_cast<int64_t>(sizeof(double)));
  double* sums = static_cast<double*>(buffer.data());
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t first = first_sharing_head(p, x, head);
    sums[head] = sum_of(head);
    if (first < head) sums[first] += sums[head];
  }
  for (int64_t head = 0; head < heads; ++head)
    if (is_first_sharing_head(p, x, head))
      row_value<T>(x, head_offset(p, x, head), 0) = static_cast<T>(sums[head]);
}

// -sum(ds |distance|) of a tile; hidden entries of ds are 0.
template <class T>
double slope_gradient(const Problem& p, const TileRange& t, const T* ds) {
  using V = Vec<T>;
  V sum = V::fill(0);
  for (int64_t i = 0; i < t.width; i += V::kSize) {
    V column = V::fill(0);
    for (int64_t j = 0; j < t.keys; ++j)
      column = fma(V::load(ds + j * t.width + i), abs(distances<T>(p, t, j, i)), column);
    sum = sum + before(t.queries, i, column);
  }
  return -static_cast<double>(sum_lanes(sum));
}

// The slope gradients of every cell: (key heads, cells, group).
class SlopeSums {
 public:
  TORCH_EXT_INLINE SlopeSums(const BackwardProblem& p, int64_t cells)
      : cells_(cells),
        group_(p.group),
        sums_(p.grad_slopes ? p.query_heads() * cells * static_cast<int64_t>(sizeof(double)) : 0) {}

  // Where one cell of one key head writes, or null where slopes have no gradient.
  TORCH_EXT_INLINE double* of(int64_t key_head, int64_t cell) const {
    double* sums = static_cast<double*>(sums_.data());
    return sums_.bytes() == 0 ? nullptr : sums + (key_head * cells_ + cell) * group_;
  }

  template <class T>
  void write(const BackwardProblem& p) const {
    if (sums_.bytes() == 0) return;
    write_head_sums<T>(p, p.grad_slopes, [&](int64_t head) {
      return sum_parts(of(head / group_, 0) + head % group_, group_, cells_);
    });
  }

 private:
  int64_t cells_, group_;
  Buffer sums_;
};

// Backward: da = -sum_i exp(a - lse_i) delta_i. Second order, along a': the sink has the value 0,
// so da = -sum_i exp(a - lse_i) (a' delta_i + eps_i).
template <class E, class P>
void sink_gradient(const P& p, RowStatistics<SumOf<E>> rows) {
  using T = SumOf<E>;
  const Cut cut = cut_of<T>(p);
  const int64_t tiles = divide_up(p.query_length, cut.tile_queries), width = cut.tile_width;
  const Buffer buffer(p.query_heads() * tiles * static_cast<int64_t>(sizeof(double)));
  double* sums = static_cast<double*>(buffer.data());
  const int64_t size = elements<E>(p.value_head_size) * width;
  const int64_t bytes =
      3 * width * static_cast<int64_t>(sizeof(T)) + 2 * size * static_cast<int64_t>(sizeof(E));
  for_each_query_block(p, cut, 1, bytes, [&](const TileRange& t, void* scratch) {
    T* const lse = static_cast<T*>(scratch);
    T* const residual = lse + width;
    T* const delta = residual + width;
    load_row_statistics(p, t, lse, residual);
    if constexpr (__is_same(P, BackwardProblem)) {
      E* const dO = reinterpret_cast<E*>(delta + width);
      if (p.grad_output)
        pack_transposed<E>(p.grad_output, head_offset(p, p.grad_output, t.head), t.query, t.queries,
                           p.value_head_size, dO, width);
      row_deltas<E>(p, t, p.grad_output ? dO : nullptr, dO + size, delta);
    } else {
      const T a_dot = head_value<T>(p, p.direction.sink, t.head);
      for (int64_t i = 0; i < t.queries; ++i) {
        const int64_t row = t.query + i;
        const T apart = (a_dot - rows.center(t.head)[row]) - rows.mu(t.head)[row];
        delta[i] = apart * rows.delta(t.head)[row] + rows.epsilon(t.head)[row];
      }
    }
    const T sink = head_value<T>(p, p.sink, t.head);
    T* const weight = lse;
    for (int64_t i = 0; i < width; i += Vec<T>::kSize)
      sink_weight(sink, lse + i, residual + i).store(weight + i);
    double sum = 0;
    for (int64_t i = 0; sink != -kInfinity<T> && i < t.queries; ++i)
      if (weight[i] != 0) sum -= static_cast<double>(weight[i]) * delta[i];
    sums[t.head * tiles + t.query / cut.tile_queries] = sum;
  });
  write_head_sums<T>(p, p.grad_sink,
                     [&](int64_t head) { return sum_parts(sums + head * tiles, 1, tiles); });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
