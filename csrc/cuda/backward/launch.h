// The backward of one dtype: delta, then a kernel for every gradient that is wanted. Each computes
// the scores anew, so that no two tasks add to the same sum.
#pragma once

#include "cuda/dtypes.h"
#include "cuda/gradients/delta.h"
#include "cuda/gradients/launch.h"

namespace torch_ext::cuda {

template <class E>
int64_t backward_workspace(const BackwardProblem& p) {
  return GradientLauncher<E>::workspace(p, false);
}

template <class E>
void backward(const BackwardProblem& p, const Launch& on) {
  SecondOrderProblem without_direction{};
  static_cast<BackwardProblem&>(without_direction) = p;
  GradientLauncher<E> launcher(without_direction, false, on);
  const GradientParameters& x = launcher.parameters();
  launch<DeltaKernel<E>>(on.stream, DeltaKernel<E>::blocks(x), 0, x);
  launcher.template all_gradients<false>();
}

}  // namespace torch_ext::cuda
