// Plain types that the device and the host implementation of the primitives share, and that code
// without CUDA headers may name.
#pragma once

#include <cstdint>

namespace torch_ext::cuda {

// Where to launch: a device and one of its streams (a cudaStream_t).
struct Stream {
  int device = 0;
  void* handle = nullptr;
};

// The two 16-bit formats, as stored.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace torch_ext::cuda
