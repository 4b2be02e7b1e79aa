// The derivatives that the fused operators leave out, N×M matrices and all: third and higher order,
// and forward mode over forward mode. They come from differentiating these compositions of ATen
// operations once more.
#pragma once

#include "ops/attention.h"

namespace torch_ext::ops {

// What attention_tangent and attention_second_order return, from query, key, value and options
// alone.
TangentResult dense_tangent(const TangentArguments& arguments);
SecondOrderResult dense_second_order(const SecondOrderArguments& arguments);

}  // namespace torch_ext::ops
