// Which problems the Hopper kernels take. All others are the general family's.
#pragma once

#include "cuda/hopper/operand.h"

namespace torch_ext::cuda::hopper {

inline bool has_served_type(const Problem& p) {
  const DType dtype = p.query.dtype;
  return (dtype == DType::BFloat16 || dtype == DType::Float16) && p.key.dtype == dtype &&
         p.value.dtype == dtype;
}

inline bool has_served_size(const Problem& p) {
  const int64_t size = p.head_size;
  return (size == 64 || size == 128 || size == 256) && p.value_head_size == size;
}

// Causal and window are options like any other length; the rest changes scores one by one. The
// largest score is found before scaling, which a scale of 0 or below would turn around.
inline bool has_served_options(const Problem& p) {
  return !p.mask && !p.bias && !p.slopes && !p.sink && p.softcap == 0 && p.dropout_p == 0 &&
         p.scale >= 1e-30 && p.scale <= 1e30;
}

// Written in pieces of 16 bytes.
inline bool has_served_output(const ForwardProblem& p) {
  const Operand& o = p.output;
  bool aligned = o.dtype == p.query.dtype && o.col_stride == 1 && is_aligned(o.data) &&
                 (p.query_length == 1 || o.row_stride % kAlignedElements == 0);
  for (int d = 0; d < p.leading_dims; ++d) {
    aligned &= p.leading_sizes[d] == 1 || o.leading_strides[d] % kAlignedElements == 0;
  }
  return aligned;
}

// What the kernels can do.
inline bool fits(const ForwardProblem& p) {
  return has_served_type(p) && has_served_size(p) && has_served_options(p) && p.query_heads() > 0 &&
         p.query_length <= kMaxLength && p.key_length <= kMaxLength && has_served_output(p) &&
         describe_operand(p, p.query, p.query_length, p.head_size, 1) &&
         describe_operand(p, p.key, p.key_length, p.head_size, p.group) &&
         describe_operand(p, p.value, p.key_length, p.head_size, p.group);
}

// What they are the best choice for: few queries need their keys split among more blocks.
constexpr int64_t kFewQueries = 64;
inline bool serves(const ForwardProblem& p) { return p.query_length > kFewQueries && fits(p); }

}  // namespace torch_ext::cuda::hopper
