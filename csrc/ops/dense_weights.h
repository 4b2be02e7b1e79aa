// The attention matrix in memory, as a composition of ATen operations that autograd, forward mode
// and vmap take apart by themselves: for the weights themselves and for dense.h.
//
// inf and NaN in keys that no query sees, and in queries that see nothing, reach no other result,
// nor do those in hidden scores. Derivatives with respect to queries and keys that see each other
// in part only are not as forgiving: in them hidden entries count as 0 times what is there.
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
  // Undefined where every key is visible to every query:
  Tensor hidden;                       // broadcastable to (…, H, n, M)
  Tensor unseen_queries, unseen_keys;  // (…, H, n, 1) and (…, H, M, 1)
  // The softmax before dropout. One more column, the last, belongs to the sink where there is one.
  Tensor weights;

  // Without the column of the sink.
  Tensor columns(const Tensor& matrix) const;
};

DenseWeights dense_weights(const WeightsArguments& arguments);

// tensor with 0 in rows that take part in nothing; `unseen` may be undefined.
Tensor seen(const Tensor& tensor, const Tensor& unseen);

// (…, Hkv, M, D) → (…, H, M, D): query head h reads head h / (H / Hkv).
Tensor repeat_heads(const Tensor& tensor, const Tensor& query);

// The transpose of repeat_heads: (…, H, M, D) → the shape of `like`, a sum over each group.
Tensor sum_heads(const Tensor& tensor, const Tensor& like);

// A number per head, broadcastable to (…, H), → broadcastable to (…, H, N, M).
Tensor per_head(const Tensor& tensor, const Tensor& query);

// The transpose of per_head: sums (…, H, N, M) to the shape of `like`.
Tensor sum_per_head(const Tensor& matrix, const Tensor& like);

// matrix (…, N, M), and column, broadcastable to (…, N, 1), after its last one.
Tensor append_column(const Tensor& matrix, const Tensor& column);

}  // namespace torch_ext::ops
