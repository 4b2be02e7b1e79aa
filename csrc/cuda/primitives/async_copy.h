// Copies from global to shared memory that run while the thread goes on.
#pragma once

#include "cuda/primitives/thread.h"

namespace torch_ext::cuda {

// Starts copying 16 bytes, of which the first `bytes` (0 … 16) are read and the others become zero;
// with 0, `global` may be any pointer. Both addresses are 16-byte aligned. Until the copy has been
// waited for, what `shared` holds is undefined.
TORCH_EXT_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}

// Makes one group of the thread's copies since the last call; the group may be empty.
TORCH_EXT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all of the thread's groups except its kPending latest. Other threads see the copied
// bytes after a barrier that follows.
template <int kPending>
TORCH_EXT_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace torch_ext::cuda
