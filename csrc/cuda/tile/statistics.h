// Numbers per row: logsumexp and its residual, as the operators read and write them.
#pragma once

#include <cmath>

#include "cuda/tile/scores.h"

namespace torch_ext::cuda {

// Row `row` of a per-row operand of one head; 0 where absent.
template <class T>
TORCH_EXT_DEVICE T row_value(const Operand& x, int64_t offset, int64_t row) {
  return x ? static_cast<const T*>(x.data)[offset + row * x.row_stride] : T(0);
}

// L = max + log(sum) and what rounding it lost, (max + log(sum)) - L. Where nothing contributed the
// sum is 0 and L is -inf.
template <class T>
TORCH_EXT_DEVICE void store_logsumexp(const ForwardProblem& p, int64_t head, int64_t row, T max,
                                      T sum) {
  const T log_sum = sum == 0 ? T(0) : std::log(sum);
  const T lse = max + log_sum;
  const bool is_max_larger = std::abs(max) > std::abs(log_sum);
  const T large = is_max_larger ? max : log_sum, small = is_max_larger ? log_sum : max;
  const auto store = [&](const Operand& x, T value) {
    static_cast<T*>(x.data)[head_offset(p, x, head) + row * x.row_stride] = value;
  };
  store(p.logsumexp, lse);
  store(p.logsumexp_residual, std::abs(lse) < kInfinity<T> ? (large - lse) + small : T(0));
}

}  // namespace torch_ext::cuda
