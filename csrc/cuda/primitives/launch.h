// Launches kernels, and says what the device offers.
//
// A kernel is a struct:
//   struct Kernel {
//     static constexpr const char* kName = "forward";
//     static constexpr int kThreads = 128;           // per block, whole warps
//     static constexpr int kBlocksPerProcessor = 2;  // that the registers must suffice for
//     struct Parameters { … };                       // passed by value
//     static TORCH_EXT_DEVICE void run(const Parameters& p);
//   };
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/primitives/thread.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda {

constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxParameterBytes = 32764;

namespace detail {

inline int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  if (error == cudaSuccess) return value;
  cudaGetLastError();
  throw std::runtime_error("torch_ext: device " + std::to_string(device) + ": " +
                           cudaGetErrorString(error));
}

// Throws what the runtime said. The kernel has code for `architectures`, 800 standing for
// sm_80.
inline void check(cudaError_t error, const char* kernel, int device,
                  std::initializer_list<int> architectures) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that no later call takes it for its own
  std::string message = std::string("torch_ext: kernel ") + kernel + " on device " +
                        std::to_string(device) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    const char* separator = "; this build has code for sm_";
    for (int architecture : architectures) {
      message += separator + std::to_string(architecture / 10);
      separator = ", sm_";
    }
    message += "; device " + std::to_string(device) + " is sm_" +
               std::to_string(attribute(cudaDevAttrComputeCapabilityMajor, device)) +
               std::to_string(attribute(cudaDevAttrComputeCapabilityMinor, device));
  }
  throw std::runtime_error(message);
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerProcessor)
    run_kernel(const __grid_constant__ typename Kernel::Parameters parameters) {
  Kernel::run(parameters);
}

}  // namespace detail

// The stream's device is the current one while this lives. It is set even where it is that already:
// on a thread that has called nothing yet, its context is not.
class CurrentDevice {
 public:
  CurrentDevice(const Stream& stream, const char* kernel) : device_(stream.device) {
    detail::check(cudaGetDevice(&previous_), kernel, device_, {});
    detail::check(cudaSetDevice(device_), kernel, device_, {});
  }
  CurrentDevice(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }

 private:
  int device_, previous_ = 0;
};

// Shared memory that one block may have, in bytes.
inline int64_t shared_memory_limit(const Stream& stream) {
  return detail::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device);
}

inline int processors(const Stream& stream) {
  return detail::attribute(cudaDevAttrMultiProcessorCount, stream.device);
}

// Runs `blocks` blocks, at most kMaxBlocks: kernels loop over their tasks in steps of
// block_count(). Without blocks there is nothing to run. Throws std::runtime_error.
template <class Kernel>
void launch(const Stream& stream, int64_t blocks, int64_t shared_bytes,
            const typename Kernel::Parameters& parameters) {
  using Parameters = typename Kernel::Parameters;
  static_assert(Kernel::kThreads % kWarpSize == 0 && Kernel::kThreads <= 1024);
  static_assert(std::is_trivially_copyable_v<Parameters> &&
                sizeof(Parameters) <= kMaxParameterBytes);
  if (blocks <= 0) return;
  const CurrentDevice current(stream, Kernel::kName);
  const auto check = [&](cudaError_t error) {
    detail::check(error, Kernel::kName, stream.device, {__CUDA_ARCH_LIST__});
  };
  const void* kernel = reinterpret_cast<const void*>(&detail::run_kernel<Kernel>);
  if (shared_bytes > 48 * 1024) {  // what is allowed without asking
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)));
  }
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks))),
                         dim3(Kernel::kThreads), arguments, static_cast<size_t>(shared_bytes),
                         static_cast<cudaStream_t>(stream.handle)));
}

}  // namespace torch_ext::cuda
