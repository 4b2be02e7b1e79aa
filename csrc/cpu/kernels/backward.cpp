// (do, dlse, q, k, v, o, lse) -> (dq, dk, dv, dbias, dslopes, dsink), five products a tile:
// gradient_task.h.
#include "cpu/kernels/entry_points.h"
#include "cpu/kernels/gradient_task.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {

void backward(const BackwardProblem& problem) {
#ifdef __AVX512BF16__
  run_gradients<Pair>(problem, {});
#else
  if (problem.query.dtype == DType::Float64)
    run_gradients<double>(problem, {});
  else
    run_gradients<float>(problem, {});
#endif
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
