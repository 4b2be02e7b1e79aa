// A warpgroup's threads, and how they keep pace with the thread that copies.
#pragma once

#include "cuda/primitives/hopper_barrier.h"

namespace torch_ext::cuda::hopper {

constexpr int kWarpgroup = 128;     // threads
constexpr int kWarpgroupRows = 64;  // of a matrix product

// What a block may have of shared memory, and of registers.
constexpr int kSharedBytes = 232448;
constexpr int kRegisters = 65536;

// A consuming thread's place in its warp, and its warp's in the warpgroup. Not held in registers,
// which scores fill.
TORCH_EXT_DEVICE int lane() { return reread_thread_index() % kWarpSize; }
TORCH_EXT_DEVICE int warp() { return reread_thread_index() / kWarpSize % (kWarpgroup / kWarpSize); }

// A position in a ring of tiles, and the parity of the phase that a barrier there is in.
template <int kStages>
struct RingPosition {
  unsigned count = 0;  // tiles so far

  TORCH_EXT_DEVICE int stage() const { return static_cast<int>(count % kStages); }
  TORCH_EXT_DEVICE int parity() const { return static_cast<int>(count / kStages % 2); }
};

// This warp no longer reads what the barrier stands for.
TORCH_EXT_DEVICE void release(SharedBarrier& barrier) {
  warp_barrier();
  if (lane() == 0) arrive(barrier);
}

// Whether some lane of the warp says so.
TORCH_EXT_DEVICE bool warp_any(bool x) {
  int any = x;
  TORCH_EXT_UNROLL
  for (int mask = 1; mask < kWarpSize; mask *= 2) any |= shuffle_xor(any, mask);
  return any != 0;
}

// run_block<Roles>(p): the last warpgroup of a block copies, with one thread; the others consume.
//   struct Roles { kConsumers, kProducerRegisters, kConsumerRegisters; struct Shared;
//                  initialize_all(Shared&); produce(p, Shared&); consume(p, Shared&, warpgroup); };
template <class Roles, class Parameters>
TORCH_EXT_DEVICE void run_block(const Parameters& p) {
  auto& shared = *reinterpret_cast<typename Roles::Shared*>(shared_memory());
  if (thread_index() == 0) {
    Roles::initialize_all(shared);
    make_barriers_visible();
  }
  block_barrier();
  // The same in the whole warp, as the compiler can see.
  const int warpgroup = shuffle(thread_index() / kWarpgroup, 0);
  if (warpgroup == Roles::kConsumers) {
    give_up_registers<Roles::kProducerRegisters>();
    if (thread_index() % kWarpgroup == 0) Roles::produce(p, shared);
  } else {
    claim_registers<Roles::kConsumerRegisters>();
    Roles::consume(p, shared, warpgroup);
  }
}

}  // namespace torch_ext::cuda::hopper
