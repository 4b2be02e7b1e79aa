// The one bridge between Torch and the kernels: what to compute, as pointers, sizes and strides.
//
// Nothing here knows at::Tensor. The structs are plain data, so that the same description serves
// every ISA level and CUDA devices. All functions are always inlined: this header is compiled into
// translation units with different instruction sets, and an out-of-line copy from one of them must
// never be the copy that another one calls.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TORCH_EXT_INLINE __host__ __device__ __forceinline__
#else
#define TORCH_EXT_INLINE inline __attribute__((always_inline))
#endif

namespace torch_ext {

enum class DType : uint8_t { Float64, Float32, BFloat16, Float16, Bool, Int64 };

// Of one element.
TORCH_EXT_INLINE int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::Float64:
    case DType::Int64:
      return 8;
    case DType::Float32:
      return 4;
    case DType::Bool:
      return 1;
    default:
      return 2;
  }
}

// A window so wide that it hides nothing; sums with positions do not overflow.
constexpr int64_t kUnlimited = INT64_C(1) << 60;

// Leading (batch and head) dimensions an operand may have. The checks refuse more.
constexpr int kMaxLeadingDims = 16;

// One tensor (…, rows, cols). Strides count elements and are 0 where the tensor is broadcast.
// A per-row vector such as logsumexp has cols = 1; a number per head such as a slope has rows = 1
// too.
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
//
// Key j lies at distance j - i - offset from query i. The scores are
//   S = softcap(scale Q K^T) + bias - slope |j - i - offset|,  softcap(x) = s tanh(x / s)
// and key j is visible to query i iff -left <= j - i - offset <= right, mask(i, j) and
// bias(i, j) > -inf.
struct Problem {
  int leading_dims = 0;  // at least 1: a 2-D query is one head
  int64_t leading_sizes[kMaxLeadingDims] = {};
  int64_t group = 1;

  int64_t query_length = 0;     // N
  int64_t key_length = 0;       // M
  int64_t head_size = 0;        // D, of query and key
  int64_t value_head_size = 0;  // E, of value and output

  double scale = 1;
  double softcap = 0;  // s; 0: none
  // The window, causal limit included; kUnlimited where there is none. |offset| <= N + M.
  int64_t left = kUnlimited, right = kUnlimited;
  int64_t offset = 0;  // 0: first query beside first key; M - N: last beside last
  Operand mask;        // Bool (N, M), true = attend
  Operand bias;        // (N, M), added to the scores; -inf hides
  Operand slopes;      // a number per head: ALiBi
  Operand sink;        // a number per head: the score of one more key, whose value is 0

  // Dropout: weight (i, j) becomes weight Z(i, j), Z = 0 or 1 / (1 - p), regenerated from the seed
  // and the position (philox.h), never stored.
  double dropout_p = 0;
  Operand seed;  // Int64, a number per batch element: stride 0 along the heads

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

// One direction: tangents of the inputs, like them in shape and dtype; absent = zero.
struct Direction {
  Operand query, key, value, bias, slopes, sink;
};

// Directional derivatives of output and logsumexp.
struct TangentProblem : Problem {
  Operand output, logsumexp, logsumexp_residual;  // as the forward wrote them
  Direction direction;
  // Results; an absent one is not computed.
  Operand output_tangent;     // (N, E)
  Operand logsumexp_tangent;  // (N), as logsumexp
};

struct BackwardProblem : Problem {
  Operand output, logsumexp, logsumexp_residual;  // as the forward wrote them
  Operand grad_output;                            // (N, E), absent = zero
  Operand grad_logsumexp;                         // (N), absent = zero
  // Results; an absent one is not computed.
  Operand grad_query, grad_key, grad_value;  // as query, key, value
  // float64 for float64 inputs, else float32; stride 0 wherever the input was broadcast: an element
  // is the sum over all that read it.
  Operand grad_bias, grad_slopes, grad_sink;
};

// The gradients of <grad_output, output tangent> + <grad_logsumexp, logsumexp tangent> with respect
// to query, key, value, bias, slopes and sink (the fields of BackwardProblem), and with respect to
// grad_output and grad_logsumexp, which are the tangents themselves.
struct SecondOrderProblem : BackwardProblem {
  Direction direction;
  Operand output_tangent, logsumexp_tangent;  // results, as in TangentProblem
};

// Element offset of one head of `operand`. `head` counts query heads, 0 … query_heads() - 1.
// `group` is 1 for operands with query's heads and Problem::group for those with key's.
TORCH_EXT_INLINE int64_t head_offset(const Problem& p, const Operand& operand, int64_t head,
                                     int64_t group = 1) {
  int64_t offset = 0;
  for (int d = p.leading_dims - 1; d >= 0; --d) {
    // Divisions take long: what is left for the first dimension is its index.
    const int64_t outer = d == 0 ? 0 : head / p.leading_sizes[d];
    int64_t index = head - outer * p.leading_sizes[d];
    if (d == p.leading_dims - 1 && group > 1) index /= group;
    offset += index * operand.leading_strides[d];
    head = outer;
  }
  return offset;
}

}  // namespace torch_ext
