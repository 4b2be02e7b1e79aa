// Hopper's copy engine: whole tiles of a strided tensor, described once on the host, are brought to
// shared memory by one thread.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "cuda/primitives/hopper_barrier.h"
#include "cuda/primitives/hopper_descriptor.h"
#include "cuda/primitives/hopper_tensor.h"
#include "cuda/primitives/launch.h"

namespace torch_ext::cuda {

// A tensor, and the tiles of 64 columns x `rows` (dimensions 0 and 1) that are read of it. Lives
// among a kernel's parameters.
struct TensorMap {
  CUtensorMap map;
};

// Whether the device has the instructions of the hopper headers: they exist in sm_90a only.
inline bool is_hopper(const Stream& stream) {
  return detail::attribute(cudaDevAttrComputeCapabilityMajor, stream.device) == 9;
}

// rows <= 256. The device must be the current one.
template <class E>
TensorMap make_tensor_map(const TensorLayout& tensor, int rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                               12000, cudaEnableDefault, &found);
#else
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
      throw std::runtime_error("torch_ext: the CUDA driver does not offer cuTensorMapEncodeTiled");
    }
    return reinterpret_cast<Encode>(entry);
  }();

  cuuint64_t sizes[kTensorDims], strides[kTensorDims - 1];
  cuuint32_t tile[kTensorDims] = {kBlockColumns, static_cast<cuuint32_t>(rows), 1, 1, 1};
  const cuuint32_t steps[kTensorDims] = {1, 1, 1, 1, 1};
  for (int d = 0; d < kTensorDims; ++d) {
    sizes[d] = static_cast<cuuint64_t>(tensor.sizes[d]);
    if (d > 0) strides[d - 1] = static_cast<cuuint64_t>(tensor.strides[d]) * sizeof(E);
  }
  TensorMap result;
  const CUresult error =
      encode(&result.map,
             std::is_same_v<E, BFloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                         : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             kTensorDims, const_cast<void*>(tensor.data), sizes, strides, tile, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw std::runtime_error("torch_ext: cuTensorMapEncodeTiled: error " + std::to_string(error));
  }
  return result;
}

// Has the map at hand before it is used.
TORCH_EXT_DEVICE void prefetch(const TensorMap& tensor) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&tensor.map))
               : "memory");
}

// Starts copying the tile whose first element has the coordinates `at` to `shared` (a multiple of
// 1024 bytes), swizzled (hopper_descriptor.h); what lies outside the tensor becomes 0. The tile's
// 128 * rows bytes count for `barrier`.
TORCH_EXT_DEVICE void copy_tile(void* shared, const TensorMap& tensor, const int (&at)[kTensorDims],
                                SharedBarrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(&tensor.map)), "r"(shared_address(&barrier)), "r"(at[0]),
      "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
      : "memory");
}

// Starts copying `bytes` that lie as one, both addresses and their number multiples of 16. They
// count for `barrier`.
TORCH_EXT_DEVICE void copy_bytes(void* shared, const void* global, int bytes,
                                 SharedBarrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(global)), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
}

}  // namespace torch_ext::cuda
