// What the forward writes of a row beside its output.
#pragma once

#include <cmath>

#include "cpu/kernels/tile/pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// logsumexp = m + log l of one row, split into its rounding and the residual; l = 0: nothing was
// seen.
template <class T>
void split_logsumexp(T max, T sum, T& logsumexp, T& residual) {
  const double log_sum = std::log(static_cast<double>(sum));
  const double exact = max + log_sum;
  logsumexp = sum == 0 ? -kInfinity<T> : static_cast<T>(exact);
  // For double the sum itself is rounded: what it lost is exact by two-sum, |max| >= |log_sum| or
  // not.
  const double shadow = exact - max;
  const double lost = (max - (exact - shadow)) + (log_sum - shadow);
  const double rest = (exact - static_cast<double>(logsumexp)) + lost;
  residual = rest - rest == 0 ? static_cast<T>(rest) : T(0);
}

// The same for `rows` rows of a head from `row` on.
template <class T>
void write_logsumexp(const ForwardProblem& p, int64_t head, int64_t row, int64_t rows, const T* max,
                     const T* sum) {
  const int64_t offset = head_offset(p, p.logsumexp, head);
  const int64_t residual_offset = head_offset(p, p.logsumexp_residual, head);
  for (int64_t i = 0; i < rows; ++i)
    split_logsumexp(max[i], sum[i], row_value<T>(p.logsumexp, offset, row + i),
                    row_value<T>(p.logsumexp_residual, residual_offset, row + i));
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
