// Every rule about the value, shape, type, layout and device of arguments, for all dispatch keys.
//
// Sizes are symbolic, so that tracing with dynamic shapes records these rules as assumptions and
// keeps the sizes dynamic. A violation raises an error that names the argument, what was expected
// and what came.
#pragma once

#include "ops/attention.h"

namespace torch_ext::ops {

void check(const AttentionArguments& arguments);
void check(const BackwardArguments& arguments);
void check(const TangentArguments& arguments);
void check(const SecondOrderArguments& arguments);
void check(const WeightsArguments& arguments);
void check(const DropoutMaskArguments& arguments);

// The type in which scores are summed, and that of logsumexp: float32 for the 16-bit types.
at::ScalarType accumulation_type(at::ScalarType type);

// Whether bias, slopes and sink may have this type beside such a query.
bool goes_with_query(at::ScalarType type, at::ScalarType query_type);

}  // namespace torch_ext::ops
