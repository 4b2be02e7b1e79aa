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

// Whether an operand's rows can be read or written in pieces of 16 bytes; `group` query heads share
// a head.
inline bool is_in_pieces(const Problem& p, const Operand& x, int64_t length, int64_t group) {
  bool aligned = x.dtype == p.query.dtype && x.col_stride == 1 && is_aligned(x.data) &&
                 (length == 1 || x.row_stride % kAlignedElements == 0);
  for (int d = 0; d < p.leading_dims; ++d) {
    const int64_t size = p.leading_sizes[d] / (d == p.leading_dims - 1 ? group : 1);
    aligned &= size == 1 || x.leading_strides[d] % kAlignedElements == 0;
  }
  return aligned;
}

inline bool has_served_tasks(const Problem& p) {
  const int64_t length = p.query_length > p.key_length ? p.query_length : p.key_length;
  return p.query_heads() <= kMaxTasks / (length / kSmallestTile + 1);
}

inline bool has_served_inputs(const Problem& p) {
  return has_served_type(p) && has_served_size(p) && has_served_options(p) && p.query_heads() > 0 &&
         p.query_length <= kMaxLength && p.key_length <= kMaxLength && has_served_tasks(p) &&
         describe_operand(p, p.query, p.query_length, p.head_size, 1) &&
         describe_operand(p, p.key, p.key_length, p.head_size, p.group) &&
         describe_operand(p, p.value, p.key_length, p.head_size, p.group);
}

// What the kernels can do.
inline bool fits(const ForwardProblem& p) {
  return has_served_inputs(p) && is_in_pieces(p, p.output, p.query_length, 1);
}
inline bool fits(const BackwardProblem& p) {
  const auto is_writable = [&](const Operand& x, int64_t length, int64_t group) {
    return !x || is_in_pieces(p, x, length, group);
  };
  return has_served_inputs(p) && p.grad_output &&
         is_in_pieces(p, p.grad_output, p.query_length, 1) &&
         describe_operand(p, p.grad_output, p.query_length, p.head_size, 1) &&
         is_in_pieces(p, p.output, p.query_length, 1) &&
         is_writable(p.grad_query, p.query_length, 1) &&
         is_writable(p.grad_key, p.key_length, p.group) &&
         is_writable(p.grad_value, p.key_length, p.group);
}

// What they are the best choice for: few queries need their keys split among more blocks.
constexpr int64_t kFewQueries = 64;
template <class P>
bool serves(const P& p) {
  return p.query_length > kFewQueries && fits(p);
}

}  // namespace torch_ext::cuda::hopper
