// What the tests of the attention kernels have in common.
#pragma once

#include "compare.h"
#include "cuda/operators.h"

namespace torch_ext::test {

constexpr DType kDTypes[] = {DType::Float64, DType::Float32, DType::BFloat16, DType::Float16};

inline Options of_dtype(DType dtype, Options o = {}) {
  o.dtype = dtype;
  return o;
}
inline void expect_all_agree(const Shape& shape, const Options& options) {
  Case c(shape, options);
  expect_agreement(c);
}
// Scores of large heads stay as small as those of others.
inline Options of_head_size(int64_t size, Options o) {
  o.scale = 1 / std::sqrt(static_cast<double>(size));
  return o;
}

}  // namespace torch_ext::test
