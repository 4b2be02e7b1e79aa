// What the forward writes of a row beside its output.
#pragma once

#include <cmath>

#include "cpu/kernels/pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// logsumexp = m + log l of one row, split into its rounding and the residual; l = 0: nothing was
// seen.
template <class T>
void write_logsumexp(const ForwardProblem& p, int64_t head, int64_t query, T max, T sum) {
  const double log_sum = std::log(static_cast<double>(sum));
  const double exact = max + log_sum;
  const T rounded = sum == 0 ? -kInfinity<T> : static_cast<T>(exact);
  // For double the sum itself is rounded: what it lost is exact by two-sum, |max| >= |log_sum| or
  // not.
  const double shadow = exact - max;
  const double lost = (max - (exact - shadow)) + (log_sum - shadow);
  const double residual = (exact - static_cast<double>(rounded)) + lost;
  row_value<T>(p.logsumexp, head_offset(p, p.logsumexp, head), query) = rounded;
  row_value<T>(p.logsumexp_residual, head_offset(p, p.logsumexp_residual, head), query) =
      residual - residual == 0 ? static_cast<T>(residual) : T(0);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
