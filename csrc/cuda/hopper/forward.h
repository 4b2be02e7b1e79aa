// The forward on Hopper (sm_90a).
#pragma once

#include "attention/problem.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda::hopper {

// Computes the forward, or returns false and does nothing: where serves.h says no, the device is
// another one, or the build has no code for Hopper. Needs no workspace.
bool forward(const ForwardProblem& p, const Stream& stream);

// The same for elements E and heads of kHeadSize; instantiated where there is code for Hopper.
template <class E, int kHeadSize>
bool forward_for(const ForwardProblem& p, const Stream& stream);

}  // namespace torch_ext::cuda::hopper
