// (q', k', v', b', q, k, v, o, lse) -> (o', lse'), five products a tile: tangent_sweep.h.
#include "cpu/kernels/derivatives/tangent_sweep.h"
#include "cpu/kernels/entry_points.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {

void tangent(const TangentProblem& problem) {
  if (problem.query.dtype == DType::Float64)
    tangent_sweep<double>(problem, {});
  else
    tangent_sweep<float>(problem, {});
}

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
