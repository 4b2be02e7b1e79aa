// The threads of a block: who they are, what they share and where they meet.
//
// Everything under cuda/primitives has a second implementation, for tests, that runs on a CPU.
// What is documented here holds for both.
#pragma once

#include <cstdint>

#define TORCH_EXT_DEVICE __device__ __forceinline__
// What is called rather than inlined: rare, and long.
#define TORCH_EXT_DEVICE_FUNCTION __device__ __noinline__
// Before a loop that must vanish because registers are indexed by its counter.
#define TORCH_EXT_UNROLL _Pragma("unroll")
// Before a loop that must not.
#define TORCH_EXT_KEEP_LOOP _Pragma("unroll 1")

namespace torch_ext::cuda {

constexpr int kWarpSize = 32;

// Grids and blocks have one dimension; blocks consist of whole warps.
TORCH_EXT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
TORCH_EXT_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % kWarpSize); }
TORCH_EXT_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / kWarpSize); }
TORCH_EXT_DEVICE int64_t block_index() { return static_cast<int64_t>(blockIdx.x); }
TORCH_EXT_DEVICE int64_t block_count() { return static_cast<int64_t>(gridDim.x); }

// The block's dynamic shared memory, 1024-byte aligned and not initialised.
TORCH_EXT_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char torch_ext_shared_memory[];
  return torch_ext_shared_memory;
}

// Every thread of the block arrives before any goes on; what was written before is seen after.
TORCH_EXT_DEVICE void block_barrier() { __syncthreads(); }
// The same, and whether any thread said true.
TORCH_EXT_DEVICE bool block_any(bool x) { return __syncthreads_or(x) != 0; }
// The same as block_barrier for one warp.
TORCH_EXT_DEVICE void warp_barrier() { __syncwarp(); }

// Each lane of the warp receives the `x` of the lane that it names.
template <class T>
TORCH_EXT_DEVICE T shuffle(T x, int source_lane) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return __shfl_sync(0xffffffff, x, source_lane);
}
// Lane l receives the `x` of lane l ^ mask.
template <class T>
TORCH_EXT_DEVICE T shuffle_xor(T x, int mask) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  return __shfl_xor_sync(0xffffffff, x, mask);
}

}  // namespace torch_ext::cuda
