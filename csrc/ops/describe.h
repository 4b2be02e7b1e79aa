// Tensors described to the kernels: the operators' arguments and results as Problem structs. The
// arguments must have passed `check`.
//
// Nothing is copied or made contiguous: strides go down as they are.
#pragma once

#include "attention/problem.h"
#include "ops/attention.h"

namespace torch_ext::ops {

ForwardProblem describe(const AttentionArguments& arguments, const ForwardResult& results);
TangentProblem describe(const TangentArguments& arguments, const TangentResult& results);

// The gradients of bias, slopes and sink must be of the accumulation type.
BackwardProblem describe(const BackwardArguments& arguments, const BackwardResult& results);
SecondOrderProblem describe(const SecondOrderArguments& arguments,
                            const SecondOrderResult& results);

}  // namespace torch_ext::ops
