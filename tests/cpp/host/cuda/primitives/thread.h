// csrc/cuda/primitives/thread.h on the host.
#pragma once

#include "cuda/primitives/fibers.h"

#define TORCH_EXT_DEVICE inline
#define TORCH_EXT_DEVICE_FUNCTION inline
#define TORCH_EXT_UNROLL
#define TORCH_EXT_KEEP_LOOP

namespace torch_ext::cuda {

constexpr int kWarpSize = 32;

TORCH_EXT_DEVICE int thread_index() { return host::running.thread->index; }
TORCH_EXT_DEVICE int lane_index() { return thread_index() % kWarpSize; }
TORCH_EXT_DEVICE int warp_index() { return thread_index() / kWarpSize; }
TORCH_EXT_DEVICE int64_t block_index() { return host::running.block; }
TORCH_EXT_DEVICE int64_t block_count() { return host::running.blocks; }
TORCH_EXT_DEVICE unsigned char* shared_memory() { return host::running.shared; }

TORCH_EXT_DEVICE void block_barrier(host::Location where = host::Location::current()) {
  host::meet(host::Group::Block, "block_barrier", where, nullptr, nullptr);
}
TORCH_EXT_DEVICE bool block_any(bool x, host::Location where = host::Location::current()) {
  host::meet(host::Group::Block, "block_any", where, &x, [](void* const* operands, int threads) {
    bool any = false;
    for (int i = 0; i < threads; ++i) any |= *static_cast<bool*>(operands[i]);
    for (int i = 0; i < threads; ++i) *static_cast<bool*>(operands[i]) = any;
  });
  return x;
}
TORCH_EXT_DEVICE void warp_barrier(host::Location where = host::Location::current()) {
  host::meet(host::Group::Warp, "warp_barrier", where, nullptr, nullptr);
}

template <class T>
TORCH_EXT_DEVICE T shuffle(T x, int source_lane, host::Location where = host::Location::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if (source_lane < 0 || source_lane >= kWarpSize) host::fail("shuffle", where, "no such lane");
  struct Operand {
    T sent, received;
    int source;
  } operand{x, x, source_lane};
  host::meet(host::Group::Warp, "shuffle", where, &operand, [](void* const* operands, int threads) {
    for (int lane = 0; lane < threads; ++lane) {
      auto* receiver = static_cast<Operand*>(operands[lane]);
      receiver->received = static_cast<Operand*>(operands[receiver->source])->sent;
    }
  });
  return operand.received;
}
template <class T>
TORCH_EXT_DEVICE T shuffle_xor(T x, int mask, host::Location where = host::Location::current()) {
  return cuda::shuffle(x, lane_index() ^ mask, where);  // std has a shuffle, too
}

}  // namespace torch_ext::cuda
