// (do, dlse, q, k, v, o, lse) -> (dq, dk, dv, dbias, dslopes, dsink), five products a tile:
// gradient_task.h.
#include "cpu/kernels/derivatives/gradient_task.h"
#include "cpu/kernels/entry_points.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {

void backward(const BackwardProblem& problem) {
#ifdef __AVX512BF16__
  // Few queries wait for memory, not for products.
  if (has_few_queries(problem)) return avx512::backward(problem);
  run_gradients<Pair>(problem, {});
#else
  // A gradient of the bias has a plan of its own for where it is summed: gradient_task.h.
  if (has_few_queries(problem) && !problem.grad_bias) return few_queries_backward(problem);
  if (problem.query.dtype == DType::Float64)
    run_gradients<double>(problem, {});
  else
    run_gradients<float>(problem, {});
#endif
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
