// csrc/cuda/primitives/async_copy.h on the host.
#pragma once

#include <cstring>

#include "cuda/primitives/thread.h"

namespace torch_ext::cuda {

TORCH_EXT_DEVICE void copy_async(void* shared, const void* global, int bytes,
                                 host::Location where = host::Location::current()) {
  host::check_shared(shared, 16, "copy_async", where);
  if (bytes < 0 || bytes > 16) host::fail("copy_async", where, "reads 0 to 16 bytes");
  host::Thread& thread = *host::running.thread;
  host::PendingCopy copy{shared, {}, thread.groups};
  if (bytes > 0) {
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
      host::fail("copy_async", where, "the global address is not a multiple of 16");
    }
    std::memcpy(copy.bytes, global, static_cast<size_t>(bytes));
  }
  thread.copies.push_back(copy);
  // Neither what was there before nor what will be is there for certain: whoever reads it is wrong.
  std::memset(shared, 0xff, 16);
}

TORCH_EXT_DEVICE void commit_copies() { ++host::running.thread->groups; }

template <int kPending>
TORCH_EXT_DEVICE void wait_for_copies() {
  host::Thread& thread = *host::running.thread;
  std::erase_if(thread.copies, [&](const host::PendingCopy& copy) {
    if (copy.group >= thread.groups - kPending) return false;
    std::memcpy(copy.target, copy.bytes, 16);
    return true;
  });
}

}  // namespace torch_ext::cuda
