// csrc/cuda/primitives/launch.h on the host.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/primitives/thread.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda {

constexpr int64_t kMaxParameterBytes = 32764;

struct CurrentDevice {
  CurrentDevice(const Stream&, const char*) {}
};

inline int64_t shared_memory_limit(const Stream&) { return host::device().shared_memory_limit; }
inline int processors(const Stream&) { return host::device().processors; }

template <class Kernel>
void launch(const Stream&, int64_t blocks, int64_t shared_bytes,
            const typename Kernel::Parameters& parameters) {
  using Parameters = typename Kernel::Parameters;
  static_assert(Kernel::kThreads % kWarpSize == 0 && Kernel::kThreads <= 1024);
  static_assert(Kernel::kBlocksPerProcessor > 0);
  static_assert(std::is_trivially_copyable_v<Parameters> &&
                sizeof(Parameters) <= kMaxParameterBytes);
  if (blocks <= 0) return;
  const Parameters copy = parameters;
  host::run(
      {Kernel::kName, std::min(blocks, host::device().grid_limit), Kernel::kThreads, shared_bytes},
      [](const void* p) { Kernel::run(*static_cast<const Parameters*>(p)); }, &copy);
}

}  // namespace torch_ext::cuda
