// Attention with its N×M matrices in memory, as a composition of ATen operations that autograd,
// forward mode and vmap take apart by themselves. It serves what the fused operators leave out: the
// weights themselves, third and higher derivatives, and forward mode over forward mode.
#pragma once

#include "ops/attention.h"

namespace torch_ext::ops {

// Matrices of one call, (…, H, n, M), in the accumulation type. n counts `rows` where they are
// given.
struct DenseWeights {
  Tensor query, key;  // (…, H, n, D) and (…, H, M, D): key repeated for the heads of a group
  at::Scalar scale;
  Tensor tanh;      // tanh(scale QKᵀ / softcap); undefined without softcap
  Tensor distance;  // |j − i − offset|, (n, M); undefined without slopes
  Tensor hidden;    // broadcastable; undefined where every key is visible
  // The softmax before dropout. One more column, the last, belongs to the sink where there is one.
  Tensor weights;

  // Without the column of the sink.
  Tensor columns(const Tensor& matrix) const;
};

DenseWeights dense_weights(const WeightsArguments& arguments);

// What attention_tangent and attention_second_order return, from query, key, value and options
// alone.
TangentResult dense_tangent(const TangentArguments& arguments);
SecondOrderResult dense_second_order(const SecondOrderArguments& arguments);

}  // namespace torch_ext::ops
