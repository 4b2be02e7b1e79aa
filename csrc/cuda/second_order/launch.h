// The second order of one dtype: the moments of rows, then a kernel for every result that is
// wanted.
#pragma once

#include "cuda/dtypes.h"
#include "cuda/gradients/launch.h"

namespace torch_ext::cuda {

template <class E>
int64_t second_order_workspace(const SecondOrderProblem& p) {
  return GradientLauncher<E>::workspace(p, true);
}

template <class E>
void second_order(const SecondOrderProblem& p, const Launch& on) {
  GradientLauncher<E> launcher(p, true, on);
  launcher.moments();
  launcher.template all_gradients<true>();
  launcher.template sweep<Result::kOutputTangent, true>(p.output_tangent);
}

}  // namespace torch_ext::cuda
