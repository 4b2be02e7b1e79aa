// The one bridge between Torch and the kernels: what to compute, as pointers, sizes and strides.
//
// Nothing here knows at::Tensor. The structs are plain data, so that the same description serves
// every ISA level and, later, other devices. All functions are always inlined: this header is
// compiled into translation units with different instruction sets, and an out-of-line copy from one
// of them must never be the copy that another one calls.
#pragma once

#include <cstdint>

#define TORCH_EXT_INLINE inline __attribute__((always_inline))

namespace torch_ext {

enum class DType : uint8_t { Float64, Float32, BFloat16, Float16, Bool };

// Leading (batch and head) dimensions an operand may have. The checks refuse more.
constexpr int kMaxLeadingDims = 16;

// One tensor (…, rows, cols). Strides count elements and are 0 where the tensor is broadcast.
// A per-row vector such as logsumexp has cols = 1.
struct Operand {
  void* data = nullptr;  // null: the argument is absent
  DType dtype = DType::Float32;
  int64_t leading_strides[kMaxLeadingDims] = {};
  int64_t row_stride = 0;
  int64_t col_stride = 0;

  TORCH_EXT_INLINE explicit operator bool() const { return data != nullptr; }
};

// What all four operators share. The leading dimensions are query's; the last of them counts heads.
// Key and value have `heads / group` heads: query head h reads their head h / group.
struct Problem {
  int leading_dims = 0;  // at least 1: a 2-D query is one head
  int64_t leading_sizes[kMaxLeadingDims] = {};
  int64_t group = 1;

  int64_t query_length = 0;     // N
  int64_t key_length = 0;       // M
  int64_t head_size = 0;        // D, of query and key
  int64_t value_head_size = 0;  // E, of value and output

  double scale = 1;
  bool is_causal = false;  // query i sees keys j <= i (aligned top-left)
  Operand mask;            // Bool (N, M), true = attend
  Operand bias;            // (N, M), added to the scaled scores; -inf hides

  Operand query, key, value;  // (N, D), (M, D), (M, E)

  TORCH_EXT_INLINE int64_t query_heads() const {  // B * H
    int64_t n = 1;
    for (int d = 0; d < leading_dims; ++d) n *= leading_sizes[d];
    return n;
  }
  TORCH_EXT_INLINE int64_t key_heads() const { return query_heads() / group; }  // B * Hkv
};

struct ForwardProblem : Problem {
  Operand output;              // (N, E)
  Operand logsumexp;           // (N) float64 for float64 inputs, else float32
  Operand logsumexp_residual;  // (N) what rounding logsumexp lost, same type
};

struct BackwardProblem : Problem {
  Operand output, logsumexp, logsumexp_residual;  // as the forward wrote them
  Operand grad_output;                            // (N, E), absent = zero
  Operand grad_logsumexp;                         // (N), absent = zero
  // Results; an absent one is not computed.
  Operand grad_query, grad_key, grad_value;  // as query, key, value
  // Accumulated into (the caller zero-fills it): float64 for float64 inputs, else float32; stride 0
  // wherever the bias was broadcast, so that equal addresses are summed.
  Operand grad_bias;
};

// Element offset of one head of `operand`. `head` counts query heads, 0 … query_heads() - 1.
// `group` is 1 for operands with query's heads and Problem::group for those with key's.
TORCH_EXT_INLINE int64_t head_offset(const Problem& p, const Operand& operand, int64_t head,
                                     int64_t group = 1) {
  int64_t offset = 0;
  for (int d = p.leading_dims - 1; d >= 0; --d) {
    int64_t index = head % p.leading_sizes[d];
    head /= p.leading_sizes[d];
    if (d == p.leading_dims - 1) index /= group;
    offset += index * operand.leading_strides[d];
  }
  return offset;
}

}  // namespace torch_ext
