// Numbers per row of the scores that the gradients need besides logsumexp, in the workspace.
#pragma once

#include <cmath>

#include "cuda/tile/element.h"

namespace torch_ext::cuda {

// Arrays of N numbers for each query head: delta alone for the first order, all for the second. The
// mean of s' is center + mu: in two parts, since its rounding error would be that of every s' -
// mean.
enum class RowArray { kDelta, kCenter, kMu, kEpsilon };

template <class T>
struct RowArrays {
  T* start = nullptr;
  int64_t rows = 0;    // N
  int64_t arrays = 1;  // of one head

  TORCH_EXT_INLINE T* of(int64_t head, RowArray array) const {
    return start + (head * arrays + static_cast<int64_t>(array)) * rows;
  }
};

// What one row contributes to every entry in it.
template <class T>
struct RowNumbers {
  T lse = 0, residual = 0, delta = 0, center = 0, mu = 0, epsilon = 0;
};

// Reads the numbers of the rows of one head.
template <class T>
class RowReader {
 public:
  TORCH_EXT_DEVICE RowReader(const BackwardProblem& p, const RowArrays<T>& arrays, int64_t head)
      : arrays_(arrays),
        head_(head),
        lse_(static_cast<const T*>(p.logsumexp.data) + head_offset(p, p.logsumexp, head)),
        residual_(static_cast<const T*>(p.logsumexp_residual.data) +
                  head_offset(p, p.logsumexp_residual, head)),
        lse_stride_(p.logsumexp.row_stride),
        residual_stride_(p.logsumexp_residual.row_stride) {}

  // With the first `count` of the arrays. In a row to which nothing contributed, every weight is
  // exp(s - inf) = 0.
  TORCH_EXT_DEVICE RowNumbers<T> read(int64_t row, int count) const {
    RowNumbers<T> x;
    x.lse = lse_[row * lse_stride_];
    if (x.lse == -kInfinity<T>) x.lse = kInfinity<T>;
    x.residual = residual_[row * residual_stride_];
    if (count > 0) x.delta = number(RowArray::kDelta, row);
    if (count > 1) x.center = number(RowArray::kCenter, row);
    if (count > 2) x.mu = number(RowArray::kMu, row);
    if (count > 3) x.epsilon = number(RowArray::kEpsilon, row);
    return x;
  }

 private:
  TORCH_EXT_DEVICE T number(RowArray array, int64_t row) const {
    return arrays_.of(head_, array)[row];
  }

  RowArrays<T> arrays_;
  int64_t head_;
  const T *lse_, *residual_;
  int64_t lse_stride_, residual_stride_;
};

// The number of one head: a slope, a sink; 0 where absent.
template <class T>
TORCH_EXT_DEVICE T head_number(const Problem& p, const Operand& x, int64_t head) {
  return x ? load<T>(x, head_offset(p, x, head)) : T(0);
}

// exp((sink - lse) - residual), or 0 where there is no sink.
template <class T>
TORCH_EXT_DEVICE T sink_weight(const Problem& p, int64_t head, const RowNumbers<T>& row) {
  if (!p.sink) return 0;
  return std::exp((head_number<T>(p, p.sink, head) - row.lse) - row.residual);
}

}  // namespace torch_ext::cuda
