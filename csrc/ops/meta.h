// Uninitialised results of the operators, with symbolic sizes: all that the Meta kernels do, and
// the first step of every other one.
#pragma once

#include "ops/attention.h"

namespace torch_ext::ops {

// output keeps query's dimension order in memory; logsumexp and its residual are contiguous.
ForwardResult empty_results(const AttentionArguments& arguments);

// Gradients keep the dimension order of their inputs; the one of bias is contiguous. Those that
// output_mask does not ask for are undefined.
BackwardResult empty_results(const BackwardArguments& arguments);

}  // namespace torch_ext::ops
