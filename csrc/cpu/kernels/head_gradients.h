// Gradients of the numbers per head: slopes and sinks. Sums are kept in double, one for each part
// of a head, and added in the order of heads and parts.
#pragma once

#include "cpu/kernels/row_statistics.h"
#include "cpu/kernels/weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// x[head] += sums[0] + sums[step] + …, `parts` of them.
template <class T>
void add_head_sums(const Problem& p, const double* sums, int64_t step, int64_t parts, int64_t head,
                   const Operand& x) {
  T& out = row_value<T>(x, head_offset(p, x, head), 0);
  double sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += sums[part * step];
  out += static_cast<T>(sum);
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
    const V query = V::fill(static_cast<T>(i)) + V::iota();
    sum = sum + if_less(query, V::fill(static_cast<T>(t.queries)), column, V::fill(0));
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
    for (int64_t head = 0; head < p.query_heads(); ++head)
      add_head_sums<T>(p, of(head / group_, 0) + head % group_, group_, cells_, head,
                       p.grad_slopes);
  }

 private:
  int64_t cells_, group_;
  Buffer sums_;
};

// Backward: da = -sum_i exp(a - lse_i) delta_i. Second order, along a': the sink has the value 0,
// so da = -sum_i exp(a - lse_i) (a' delta_i + eps_i).
template <class T, class P>
void sink_gradient(const P& p, RowStatistics<T> rows) {
  const int64_t tiles = divide_up(p.query_length, kTileQueries), width = tile_width<T>(p);
  const Buffer buffer(p.query_heads() * tiles * static_cast<int64_t>(sizeof(double)));
  double* sums = static_cast<double*>(buffer.data());
  const int64_t elements = width * (3 + 2 * p.value_head_size);
  const int64_t bytes = elements * static_cast<int64_t>(sizeof(T));
  for_each_query_tile<T>(p, bytes, [&](const TileRange& t, void* scratch) {
    T* const lse = static_cast<T*>(scratch);
    T* const residual = lse + width;
    T* const delta = residual + width;
    load_row_statistics(p, t, lse, residual);
    if constexpr (__is_same(P, BackwardProblem)) {
      T* const dO = delta + width;
      if (p.grad_output)
        pack_transposed<T>(p.grad_output, head_offset(p, p.grad_output, t.head), t.query, t.queries,
                           p.value_head_size, dO, width);
      row_deltas(p, t, p.grad_output ? dO : nullptr, dO + width * p.value_head_size, delta);
    } else {
      const T a_dot = head_value<T>(p, p.direction.sink, t.head);
      for (int64_t i = 0; i < t.queries; ++i)
        delta[i] = a_dot * rows.delta(t.head)[t.query + i] + rows.epsilon(t.head)[t.query + i];
    }
    const T sink = head_value<T>(p, p.sink, t.head);
    double sum = 0;
    for (int64_t i = 0; i < t.queries; ++i) {
      const T weight = sink_weight(sink, lse[i], residual[i]);
      if (weight != 0) sum -= static_cast<double>(weight) * delta[i];
    }
    sums[t.head * tiles + t.query / kTileQueries] = sum;
  });
  for (int64_t head = 0; head < p.query_heads(); ++head)
    add_head_sums<T>(p, sums + head * tiles, 1, tiles, head, p.grad_sink);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
