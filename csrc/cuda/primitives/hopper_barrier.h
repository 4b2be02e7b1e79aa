// Where the warps of a block meet on Hopper without stopping the whole block: barriers in shared
// memory that also count copied bytes, and named barriers. And how warps trade registers.
#pragma once

#include "cuda/primitives/thread.h"

namespace torch_ext::cuda {

// A barrier in shared memory. Its phases are numbered 0, 1, 2 …; one ends when the given number of
// arrivals has come and every byte that was announced in it has been copied. Then the next begins.
struct SharedBarrier {
  uint64_t state;
};

TORCH_EXT_DEVICE uint32_t shared_address(const void* x) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(x));
}

// One thread initialises; then make_barriers_visible(), then a block_barrier().
TORCH_EXT_DEVICE void initialize(SharedBarrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(arrivals)
               : "memory");
}
// To the engine that copies, too.
TORCH_EXT_DEVICE void make_barriers_visible() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// One arrival in the current phase.
TORCH_EXT_DEVICE void arrive(SharedBarrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier))
               : "memory");
}
// The same, and the announcement of `bytes` that copies will bring.
TORCH_EXT_DEVICE void arrive_and_expect(SharedBarrier& barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
      "r"(bytes)
      : "memory");
}
// Until the latest phase of this parity (its number's lowest bit) has ended. Of a new barrier,
// parity 1 has.
TORCH_EXT_DEVICE void wait(SharedBarrier& barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
}

// Named barriers 1 … 15, each for `threads` threads of whole warps per round: meet_at waits for all
// of them, arrive_at only counts.
TORCH_EXT_DEVICE void meet_at(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
TORCH_EXT_DEVICE void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// thread_index(), read anew: where registers are scarce, one fewer is held.
TORCH_EXT_DEVICE int reread_thread_index() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

// A warpgroup, four warps that begin at a multiple of four, sets how many registers its threads
// have: fewer than before, or more, for which it waits until others have given them up.
template <int kRegisters>
TORCH_EXT_DEVICE void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
TORCH_EXT_DEVICE void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace torch_ext::cuda
