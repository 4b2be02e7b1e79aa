// What Hopper's copy engine can be told of a tensor. Plain, for code without CUDA headers.
#pragma once

#include <cstdint>

namespace torch_ext::cuda {

constexpr int kTensorDims = 5;
constexpr int64_t kMaxTensorSize = (int64_t{1} << 31) - 1;     // coordinates are 32-bit numbers
constexpr int64_t kMaxTensorStride = (int64_t{1} << 40) - 16;  // bytes

// A tensor of 16-bit elements in global memory. Dimension 0 has stride 1; sizes are at least 1; the
// other strides are multiples of 16 bytes, and data is 16-byte aligned.
struct TensorLayout {
  const void* data;
  int64_t sizes[kTensorDims];
  int64_t strides[kTensorDims];  // elements
};

}  // namespace torch_ext::cuda
