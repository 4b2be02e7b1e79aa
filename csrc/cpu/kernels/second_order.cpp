// The gradients of <do, o'> + <dlse, lse'>: a sweep for o', lse' and what whole rows decide
// (tangent_sweep.h), then one for the gradients (gradient_task.h).
#include "cpu/kernels/derivatives/gradient_task.h"
#include "cpu/kernels/derivatives/tangent_sweep.h"
#include "cpu/kernels/entry_points.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
void run_second_order(const SecondOrderProblem& p) {
  const int64_t numbers = p.query_heads() * p.query_length * RowStatistics<T>::kNumbers;
  const Buffer memory(numbers * static_cast<int64_t>(sizeof(T)));
  const RowStatistics<T> rows{static_cast<T*>(memory.data()), p.query_length};
  const bool has_gradients =
      p.grad_query || p.grad_key || p.grad_value || p.grad_bias || p.grad_slopes || p.grad_sink;
  // Else the gradients' own sweep does it.
  if (!has_gradients || !can_keep_rows<T>(p)) tangent_sweep(p, rows);
  if (has_gradients) run_gradients<T>(p, rows);
}

}  // namespace

void second_order(const SecondOrderProblem& problem) {
  if (problem.query.dtype == DType::Float64)
    run_second_order<double>(problem);
  else
    run_second_order<float>(problem);
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
