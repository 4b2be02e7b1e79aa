// csrc/cuda/primitives/launch.h with a runtime that takes notes in the place of CUDA's: which calls
// a launch makes, for which device and stream, and what it says when one fails.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

// What nvcc declares by itself, for functions that are not called here.
struct Index {
  unsigned x;
};
extern const Index threadIdx, blockIdx, gridDim;
void __syncthreads();
int __syncthreads_or(int);
void __syncwarp();
#define __launch_bounds__(...)
#define __CUDA_ARCH_LIST__ 800, 900

#include "cuda/primitives/launch.h"

namespace {

struct Launched {
  int device;
  void* stream;
  unsigned blocks, threads;
  size_t shared_bytes;
};

struct Runtime {
  int current = 0;
  cudaError_t launch_error = cudaSuccess;
  std::vector<std::string> calls;
  std::vector<Launched> launched;
  int parameter = 0;  // of the latest launch
};
Runtime runtime;

}  // namespace

cudaError_t cudaGetDevice(int* device) {
  *device = runtime.current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  runtime.calls.push_back("set device " + std::to_string(device));
  runtime.current = device;
  return device < 4 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = name == cudaDevAttrComputeCapabilityMajor ? 7 : 5;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  runtime.calls.push_back("allow " + std::to_string(value));
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void*, dim3 blocks, dim3 threads, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  runtime.calls.push_back("launch");
  runtime.launched.push_back({runtime.current, stream, blocks.x, threads.x, shared_bytes});
  runtime.parameter = *static_cast<const int*>(arguments[0]);
  return runtime.launch_error;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice ? "no kernel image" : "some error";
}

namespace torch_ext::cuda {
namespace {

struct Kernel {
  static constexpr const char* kName = "example";
  static constexpr int kThreads = 64, kBlocksPerProcessor = 1;
  struct Parameters {
    int number;
  };
  static void run(const Parameters&) {}
};

void* const kStream = reinterpret_cast<void*>(0x1234);

class LaunchOnRuntimeTest : public testing::Test {
 protected:
  LaunchOnRuntimeTest() { runtime = {}; }

  static std::string error_of_launch(int device) {
    try {
      launch<Kernel>({device, kStream}, 1, 0, {});
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  }
};

// No other call: none that waits, and none that a capture for a graph refuses.
TEST_F(LaunchOnRuntimeTest, RunsOnItsStreamAndDevice) {
  runtime.current = 1;
  launch<Kernel>({2, kStream}, 7, 100, {42});
  EXPECT_EQ(runtime.calls, (std::vector<std::string>{"set device 2", "launch", "set device 1"}));
  ASSERT_EQ(runtime.launched.size(), 1u);
  const Launched& x = runtime.launched[0];
  EXPECT_EQ(x.device, 2);
  EXPECT_EQ(x.stream, kStream);
  EXPECT_EQ(x.blocks, 7u);
  EXPECT_EQ(x.threads, 64u);
  EXPECT_EQ(x.shared_bytes, 100u);
  EXPECT_EQ(runtime.parameter, 42);
}

// A thread that has called nothing yet has a device, but no context of it.
TEST_F(LaunchOnRuntimeTest, TheDeviceIsSetEvenWhereItIsCurrent) {
  launch<Kernel>({0, kStream}, 1, 0, {});
  EXPECT_EQ(runtime.calls, (std::vector<std::string>{"set device 0", "launch"}));
}

TEST_F(LaunchOnRuntimeTest, MuchSharedMemoryIsAskedFor) {
  launch<Kernel>({0, kStream}, 1, 48 * 1024, {});
  EXPECT_EQ(runtime.calls.size(), 2u);
  launch<Kernel>({0, kStream}, 1, 48 * 1024 + 1, {});
  EXPECT_EQ(runtime.calls[3], "allow 49153");
}

TEST_F(LaunchOnRuntimeTest, WithoutBlocksNothingHappens) {
  launch<Kernel>({0, kStream}, 0, 0, {});
  EXPECT_TRUE(runtime.calls.empty());
}

TEST_F(LaunchOnRuntimeTest, AFailedLaunchSaysWhatAndWhere) {
  runtime.current = 3;
  runtime.launch_error = cudaErrorInvalidValue;
  EXPECT_EQ(error_of_launch(1), "torch_ext: kernel example on device 1: some error");
  EXPECT_EQ(runtime.current, 3);
}

TEST_F(LaunchOnRuntimeTest, ADeviceWithoutCodeIsNamedBesideWhatThereIsCodeFor) {
  runtime.launch_error = cudaErrorNoKernelImageForDevice;
  EXPECT_EQ(error_of_launch(1),
            "torch_ext: kernel example on device 1: no kernel image; this build has code for "
            "sm_80, sm_90; device 1 is sm_75");
}

TEST_F(LaunchOnRuntimeTest, ADeviceThatIsNotThere) {
  EXPECT_EQ(error_of_launch(4), "torch_ext: kernel example on device 4: some error");
  EXPECT_TRUE(runtime.launched.empty());
}

}  // namespace
}  // namespace torch_ext::cuda
