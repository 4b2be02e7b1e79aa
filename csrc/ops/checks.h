// Every rule about the shape, type, layout and device of arguments, for all dispatch keys.
//
// Sizes are symbolic, so that tracing with dynamic shapes records these rules as assumptions and
// keeps the sizes dynamic. A violation raises an error that names the argument, what was expected
// and what came.
#pragma once

#include "ops/attention.h"

namespace torch_ext::ops {

void check(const AttentionArguments& arguments);
void check(const BackwardArguments& arguments);
void check(const WeightsArguments& arguments);

// The batch dimensions (all but heads, rows and columns) of the tensors broadcast against each
// other, as views; a 2-D key or value of a query with heads becomes one head for all of them. What
// is left to refuse is left to `check`.
AttentionArguments broadcast_batch(AttentionArguments arguments);
WeightsArguments broadcast_batch(WeightsArguments arguments);

// The type in which scores are summed, and that of logsumexp: float32 for the 16-bit types.
at::ScalarType accumulation_type(at::ScalarType type);

}  // namespace torch_ext::ops
