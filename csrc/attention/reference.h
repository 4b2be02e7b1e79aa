// Attention by the book: plain loops in double, one row at a time, written to be read.
// It is the last entry of the implementation table and the kernels' oracle in the GoogleTests.
#pragma once

#include "attention/problem.h"

namespace torch_ext {

void reference_forward(const ForwardProblem& problem);
void reference_backward(const BackwardProblem& problem);
void reference_tangent(const TangentProblem& problem);
void reference_second_order(const SecondOrderProblem& problem);

}  // namespace torch_ext
