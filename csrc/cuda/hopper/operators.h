// Forward and backward on Hopper (sm_90a).
#pragma once

#include "attention/problem.h"
#include "cuda/operators.h"

namespace torch_ext::cuda::hopper {

// Each computes its operator, or returns false and does nothing: where serves.h says no, the device
// is another one, or the build has no code for Hopper. The forward needs no workspace.
bool forward(const ForwardProblem& p, const Launch& launch);
bool backward(const BackwardProblem& p, const Launch& launch);
int64_t backward_workspace(const BackwardProblem& p);

// The same for elements E and heads of kHeadSize; instantiated where there is code for Hopper.
template <class E, int kHeadSize>
bool forward_for(const ForwardProblem& p, const Launch& launch);
template <class E, int kHeadSize>
bool backward_for(const BackwardProblem& p, const Launch& launch);

}  // namespace torch_ext::cuda::hopper
