// Uninitialised results of the operators, with symbolic sizes: all that the Meta kernels do, and
// the first step of every other one.
//
// Output and its tangent keep query's dimension order in memory, the gradients of query, key and
// value that of their inputs; everything else is contiguous. What output_mask does not ask for, and
// gradients of absent inputs, are undefined.
#pragma once

#include "ops/attention.h"

namespace torch_ext::ops {

ForwardResult empty_results(const AttentionArguments& arguments);
BackwardResult empty_results(const BackwardArguments& arguments);
TangentResult empty_results(const TangentArguments& arguments);
SecondOrderResult empty_results(const SecondOrderArguments& arguments);
Tensor empty_results(const DropoutMaskArguments& arguments);

}  // namespace torch_ext::ops
