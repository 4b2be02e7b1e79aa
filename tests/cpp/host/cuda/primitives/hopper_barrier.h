// csrc/cuda/primitives/hopper_barrier.h on the host.
#pragma once

#include <algorithm>
#include <bit>

#include "cuda/primitives/hopper_block.h"

namespace torch_ext::cuda {

struct SharedBarrier {
  uint64_t state;
};

namespace host {

struct BarrierState {
  uint64_t pending : 20, arrivals : 20, phase : 1;
  int64_t bytes : 23;  // announced, not yet copied
};
constexpr uint64_t kNotInitialised = 0xfffff;  // what shared memory is filled with at first

inline BarrierState load(const SharedBarrier& barrier, const char* name, const Location& where) {
  const auto state = std::bit_cast<BarrierState>(barrier.state);
  if (state.arrivals == kNotInitialised) fail(name, where, "the barrier was not initialised");
  return state;
}
// Ends the phase if nothing is missing.
inline void store(SharedBarrier& barrier, BarrierState state) {
  const bool ends = state.pending == 0 && state.bytes == 0;
  if (ends) {
    state.pending = state.arrivals;
    state.phase ^= 1;
  }
  barrier.state = std::bit_cast<uint64_t>(state);
  if (ends) notify();
}
inline void arrive(SharedBarrier& barrier, int bytes, const char* name, const Location& where) {
  BarrierState state = load(barrier, name, where);
  if (state.pending == 0) fail(name, where, "more arrivals than the barrier counts");
  --state.pending;
  state.bytes += bytes;
  store(barrier, state);
}

inline bool has_copy(const SharedBarrier& barrier) {
  const std::deque<TileCopy>& copies = hopper_block().copies;
  return std::any_of(copies.begin(), copies.end(),
                     [&](const TileCopy& copy) { return copy.barrier == &barrier; });
}
// The first one for this barrier.
inline void perform_copy(const SharedBarrier& barrier) {
  std::deque<TileCopy>& copies = hopper_block().copies;
  const auto copy = std::find_if(copies.begin(), copies.end(), [&](const TileCopy& candidate) {
    return candidate.barrier == &barrier;
  });
  const std::function<void()> perform = std::move(copy->perform);
  copies.erase(copy);
  perform();
}

inline NamedBarrier& count_at(int barrier, int threads, const char* name, const Location& where) {
  if (barrier < 1 || barrier > 15) fail(name, where, "there are named barriers 1 to 15");
  NamedBarrier& b = hopper_block().named[barrier];
  if (b.arrived > 0 && b.threads != threads) {
    fail(name, where, "others of the barrier gave another number of threads");
  }
  b.threads = threads;
  if (++b.arrived == threads) {
    b.arrived = 0;
    ++b.rounds;
    notify();
  }
  return b;
}

}  // namespace host

TORCH_EXT_DEVICE uint32_t shared_address(const void* x) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(x) - host::running.shared) +
         host::kSharedBase;
}

TORCH_EXT_DEVICE void initialize(SharedBarrier& barrier, int arrivals) {
  const auto count = static_cast<uint64_t>(arrivals);
  barrier.state = std::bit_cast<uint64_t>(host::BarrierState{count, count, 0, 0});
}
TORCH_EXT_DEVICE void make_barriers_visible() {}

TORCH_EXT_DEVICE void arrive(SharedBarrier& barrier,
                             host::Location where = host::Location::current()) {
  host::arrive(barrier, 0, "arrive", where);
}
TORCH_EXT_DEVICE void arrive_and_expect(SharedBarrier& barrier, int bytes,
                                        host::Location where = host::Location::current()) {
  host::arrive(barrier, bytes, "arrive_and_expect", where);
}
TORCH_EXT_DEVICE void wait(SharedBarrier& barrier, int parity,
                           host::Location where = host::Location::current()) {
  const auto goes_on = [&] {
    return static_cast<int>(host::load(barrier, "wait", where).phase) == parity;
  };
  while (goes_on()) {
    if (!host::has_copy(barrier)) {
      host::pause("wait", where);
      continue;
    }
    host::pause_until_idle("wait", where);
    while (goes_on() && host::has_copy(barrier)) host::perform_copy(barrier);
  }
}

TORCH_EXT_DEVICE void meet_at(int barrier, int threads,
                              host::Location where = host::Location::current()) {
  const int64_t round = host::hopper_block().named[barrier & 15].rounds;
  const host::NamedBarrier& b = host::count_at(barrier, threads, "meet_at", where);
  while (b.rounds == round) host::pause("meet_at", where);
}
TORCH_EXT_DEVICE void arrive_at(int barrier, int threads,
                                host::Location where = host::Location::current()) {
  host::count_at(barrier, threads, "arrive_at", where);
}

TORCH_EXT_DEVICE int reread_thread_index() { return thread_index(); }

template <int kRegisters>
TORCH_EXT_DEVICE void give_up_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
TORCH_EXT_DEVICE void claim_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}

}  // namespace torch_ext::cuda
