// The batch dimensions (all but heads, rows and columns) of the tensors broadcast against each
// other, as views; a 2-D key or value of a query with heads becomes one head for all of them. What
// is left to refuse is left to `check`.
#pragma once

#include "ops/attention.h"

namespace torch_ext::ops {

void broadcast_batch(AttentionArguments& arguments);
void broadcast_batch(WeightsArguments& arguments);

}  // namespace torch_ext::ops
