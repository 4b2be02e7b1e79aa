// The softmax of a row over some of its keys, and how those of all its keys become the output:
//   m = max_c m_c,  l = sum_c l_c exp(m_c - m),  o = sum_c o_c exp(m_c - m) / l
#pragma once

#include "cpu/kernels/softmax/logsumexp.h"
#include "cpu/kernels/tile/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// What one chunk of keys yields for a row: o, not yet divided by the sum, then m and l.
template <class T>
struct Partial {
  T* o;
  int64_t columns;  // E in whole vectors

  static TORCH_EXT_INLINE int64_t size(int64_t columns) { return columns + Vec<T>::kSize; }
  TORCH_EXT_INLINE T& max() const { return o[columns]; }      // of the scores seen so far
  TORCH_EXT_INLINE T& sum() const { return o[columns + 1]; }  // of exp(s - max)

  TORCH_EXT_INLINE void start(SoftmaxStart<T> first) const {
    fill_zero(o, columns);
    max() = first.max;
    sum() = first.sum;
  }
  // Adds sums that are relative to another maximum.
  TORCH_EXT_INLINE void add(const T* other, T other_max, T other_sum) const {
    using V = Vec<T>;
    if (max() == -kInfinity<T> && sum() == 0) {  // nothing was seen yet
      for (int64_t e = 0; e < columns; e += V::kSize) V::load(other + e).store(o + e);
      max() = other_max;
      sum() = other_sum;
      return;
    }
    const T largest = other_max > max() ? other_max : max();
    // Where nothing was seen, 0 instead of -inf makes every exp(-inf - 0) a 0.
    const V finite_max = V::fill(largest == -kInfinity<T> ? 0 : largest);
    const V mine = exp(V::fill(max()) - finite_max), its = exp(V::fill(other_max) - finite_max);
    for (int64_t e = 0; e < columns; e += V::kSize)
      fma(V::load(o + e), mine, V::load(other + e) * its).store(o + e);
    const V total = fma(V::fill(sum()), mine, V::fill(other_sum) * its);
    T lanes[V::kSize];
    total.store(lanes);
    max() = largest;
    sum() = lanes[0];
  }
};

// Merges what the chunks left, `step` elements apart, and the sink; writes o and lse. `merged`
// holds one Partial.
template <class T>
void finish_row(const ForwardProblem& p, int64_t head, int64_t query, T* partials, int64_t step,
                int64_t chunks, T* merged) {
  const int64_t columns = round_up(p.value_head_size, Vec<T>::kSize);
  Partial<T> row{partials, columns};
  if (chunks > 1 || p.sink) {
    row.o = merged;
    row.start(softmax_start<T>(p, head));
    for (int64_t c = 0; c < chunks; ++c) {
      const Partial<T> chunk{partials + c * step, columns};
      if (chunk.sum() != 0) row.add(chunk.o, chunk.max(), chunk.sum());
    }
  }
  // Weights of 0 may have met inf or NaN.
  if (row.sum() == 0) fill_zero(row.o, columns);
  const T factor = row.sum() == 0 ? T(0) : T(1) / row.sum();
  write_rows<T>(row.o, columns, 1, p.value_head_size, factor, p.output,
                head_offset(p, p.output, head), query);
  write_logsumexp(p, head, query, 1, &row.max(), &row.sum());
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
