// The host implementation of the primitives does what the PTX documents say of the instructions,
// and notices what a kernel does wrong.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <thread>

#include "cuda/primitives/async_copy.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/thread.h"
#include "host_threads.h"

namespace torch_ext::cuda::test {
namespace {

constexpr int kUnset = -1;

testing::AssertionResult has(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    if (text.find(part) == std::string::npos) {
      return testing::AssertionFailure() << "'" << part << "' is not in '" << text << "'";
    }
  }
  return testing::AssertionSuccess();
}

// ---- Threads
// -------------------------------------------------------------------------------------

TEST(Threads, KnowWhoTheyAre) {
  in_some_orders([] {
    std::vector<std::array<int64_t, 5>> seen(3 * 64);
    run_threads(
        [&] {
          seen[block_index() * 64 + thread_index()] = {block_index(), block_count(), thread_index(),
                                                       warp_index(), lane_index()};
        },
        0, 3);
    for (int64_t i = 0; i < 3 * 64; ++i) {
      EXPECT_EQ(seen[i], (std::array<int64_t, 5>{i / 64, 3, i % 64, i % 64 / 32, i % 32}));
    }
  });
}

TEST(Threads, ShuffleReadsTheNamedLaneOfTheSameWarp) {
  in_some_orders([] {
    std::vector<int> seen(64);
    run_threads(
        [&] { seen[thread_index()] = shuffle(thread_index(), (lane_index() * 5 + 3) % 32); });
    for (int i = 0; i < 64; ++i) EXPECT_EQ(seen[i], i / 32 * 32 + (i * 5 + 3) % 32);
  });
}

template <class T>
void expect_shuffle_xor_of() {
  std::vector<T> seen(64);
  run_threads([&] { seen[thread_index()] = shuffle_xor(static_cast<T>(thread_index() * 1.5), 5); });
  for (int i = 0; i < 64; ++i) EXPECT_EQ(seen[i], static_cast<T>((i ^ 5) * 1.5));
}

TEST(Threads, ShuffleXorExchangesFourAndEightBytes) {
  expect_shuffle_xor_of<int32_t>();
  expect_shuffle_xor_of<uint32_t>();
  expect_shuffle_xor_of<int64_t>();
  expect_shuffle_xor_of<float>();
  expect_shuffle_xor_of<double>();
}

TEST(Threads, ShuffleNamesALane) {
  EXPECT_TRUE(has(error_of([] { shuffle(1, thread_index() == 5 ? 32 : 0); }),
                  {"thread 5: shuffle", "no such lane"}));
}

// Threads exchange numbers through shared memory; returns how many read the right one.
template <class Barrier>
int right_after_exchange(int distance, const Barrier& barrier) {
  int right = 0;
  run_threads(
      [&] {
        int* shared = reinterpret_cast<int*>(shared_memory());
        shared[thread_index()] = thread_index();
        barrier();
        right += shared[thread_index() ^ distance] == (thread_index() ^ distance);
      },
      64 * sizeof(int));
  return right;
}

TEST(Threads, BarriersOrderWritesAndReads) {
  in_some_orders([] {
    EXPECT_EQ(right_after_exchange(32, [] { block_barrier(); }), 64);
    EXPECT_EQ(right_after_exchange(1, [] { block_barrier(); }), 64);
    EXPECT_EQ(right_after_exchange(1, [] { warp_barrier(); }), 64);
    EXPECT_EQ(right_after_exchange(32, [] { block_any(false); }), 64);
  });
}

TEST(Threads, AMissingBarrierShowsInEveryOrder) {
  in_some_orders([] {
    EXPECT_LT(right_after_exchange(32, [] {}), 64);
    EXPECT_LT(right_after_exchange(1, [] {}), 64);
  });
}

TEST(Threads, AWarpBarrierIsTooLittleForABlock) {
  int wrong = 0;
  in_some_orders([&] { wrong += right_after_exchange(32, [] { warp_barrier(); }) < 64; });
  EXPECT_GT(wrong, 0);
}

// Of two barriers around a read, the one before the next write is easily forgotten.
TEST(Threads, AMissingBarrierBeforeOverwritingShowsInSomeOrder) {
  for (const bool complete : {true, false}) {
    int wrong = 0;
    in_some_orders([&] {
      run_threads(
          [&] {
            int* shared = reinterpret_cast<int*>(shared_memory());
            for (int step = 0; step < 4; ++step) {
              if (complete) block_barrier();
              shared[thread_index()] = step;
              block_barrier();
              wrong += shared[63 - thread_index()] != step;
            }
          },
          64 * sizeof(int));
    });
    EXPECT_EQ(wrong == 0, complete);
  }
}

TEST(Threads, BlockAnyIsTheDisjunctionOfTheBlock) {
  in_some_orders([] {
    for (const int who : {kUnset, 0, 31, 32, 63}) {
      int said = 0;
      run_threads([&] { said += block_any(thread_index() == who); });
      EXPECT_EQ(said, who == kUnset ? 0 : 64) << who;
    }
  });
}

TEST(Threads, SharedMemoryIsAlignedAndStartsAsNaNInEveryBlock) {
  run_threads(
      [] {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(shared_memory()) % 1024, 0u);
        EXPECT_TRUE(std::isnan(reinterpret_cast<float*>(shared_memory())[thread_index()]));
        EXPECT_TRUE(std::isnan(reinterpret_cast<double*>(shared_memory())[thread_index() / 2]));
        const auto bits = reinterpret_cast<uint16_t*>(shared_memory())[thread_index()];
        EXPECT_TRUE(std::isnan(to_float(BFloat16{bits})) && std::isnan(to_float(Float16{bits})));
        block_barrier();
        reinterpret_cast<float*>(shared_memory())[thread_index()] = 0;
      },
      64 * sizeof(float), 2);
}

#ifdef __SANITIZE_ADDRESS__
TEST(ThreadsDeathTest, AddressSanitizerKnowsWhereSharedMemoryEnds) {
  EXPECT_DEATH(run_threads([] { shared_memory()[100 + lane_index()] = 0; }, 100),
               "AddressSanitizer");
}
TEST(ThreadsDeathTest, AddressSanitizerKnowsTheStacks) {
  EXPECT_DEATH(run_threads([] {
                 volatile char local[16] = {};
                 local[16 + lane_index() % 2] = 0;
                 block_barrier();
               }),
               "stack-buffer-overflow");
}
#endif

// ---- What kernels do wrong
// -----------------------------------------------------------------------

TEST(Mistakes, ABarrierThatNotEveryThreadReaches) {
  in_some_orders([] {
    EXPECT_TRUE(has(error_of([] {
                      if (warp_index() == 0) block_barrier();
                    }),
                    {"kernel lambda, block 0: no thread can go on",
                     "threads 0 to 31: wait at block_barrier (primitives_test.cpp:",
                     "threads 32 to 63: have ended"}));
  });
}

TEST(Mistakes, LanesAtDifferentInstructions) {
  in_some_orders([] {
    EXPECT_TRUE(has(error_of([] {
                      if (lane_index() < 16) {
                        shuffle(1, 0);
                      } else {
                        warp_barrier();
                      }
                    }),
                    {"others of its warp wait elsewhere", "wait at "}));
  });
}

// In a macro both would come from one place.
TEST(Mistakes, TheSameInstructionInTwoBranches) {
  const std::string error = error_of([] {
    if (lane_index() == 7) {
      shuffle(1, 0);
    } else {
      shuffle(1, 0);
    }
  });
  EXPECT_TRUE(has(error, {"thread 7 is at shuffle", "threads 0 to 6: wait at shuffle"}));
}

TEST(Mistakes, LanesOfOneWarpAtABarrierOfTheBlockAndOneOfTheWarp) {
  EXPECT_TRUE(has(error_of([] {
                    if (lane_index() % 2 == 0) {
                      block_barrier();
                    } else {
                      warp_barrier();
                    }
                  }),
                  {"no thread can go on", "threads 0 to 0: wait at block_barrier",
                   "threads 1 to 1: wait at warp_barrier"}));
}

TEST(Mistakes, AddressesOutsideSharedMemoryOrMisaligned) {
  alignas(16) static unsigned char elsewhere[512];
  const auto load = [](auto address) {
    return error_of(
        [=] {
          uint32_t x[4];
          load_matrices(x, address());
        },
        512);
  };
  EXPECT_EQ(load([] { return shared_memory() + 16 * lane_index(); }), "");
  EXPECT_TRUE(has(load([] { return elsewhere; }), {"outside shared memory"}));
  EXPECT_TRUE(has(load([] { return shared_memory() - 16; }), {"outside shared memory"}));
  EXPECT_TRUE(has(load([] { return shared_memory() + 16 * (lane_index() + 1); }),
                  {"thread 31", "outside shared memory"}));
  EXPECT_TRUE(has(load([] { return shared_memory() + lane_index() * 8; }),
                  {"thread 1:", "not a multiple of 16"}));

  const auto copy = [](int64_t shared, int64_t global, int bytes) {
    return error_of([=] { copy_async(shared_memory() + shared, elsewhere + global, bytes); }, 512);
  };
  EXPECT_EQ(copy(496, 496, 16), "");
  EXPECT_TRUE(has(copy(512, 0, 16), {"outside shared memory"}));
  EXPECT_TRUE(has(copy(8, 0, 16), {"shared address is not a multiple of 16"}));
  EXPECT_TRUE(has(copy(0, 8, 16), {"global address is not a multiple of 16"}));
  EXPECT_TRUE(has(copy(0, 0, 17), {"0 to 16 bytes"}));
  EXPECT_TRUE(has(copy(0, 0, -1), {"0 to 16 bytes"}));
}

TEST(Mistakes, WhatAThreadThrowsReachesTheCallerAndTheNextLaunchWorks) {
  in_some_orders([] {
    EXPECT_THROW(run_threads([] {
                   block_barrier();
                   if (thread_index() == 40) throw std::out_of_range("40");
                   block_barrier();
                 }),
                 std::out_of_range);
    EXPECT_EQ(right_after_exchange(32, [] { block_barrier(); }), 64);
  });
}

// ---- Launch
// --------------------------------------------------------------------------------------

TEST(Launch, ChecksSharedMemory) {
  host::Device small = host::device();
  small.shared_memory_limit = 1000;
  small.processors = 7;
  const host::WithDevice with(small);
  EXPECT_EQ(shared_memory_limit({}), 1000);
  EXPECT_EQ(processors({}), 7);
  EXPECT_EQ(error_of([] {}, 1000), "");
  EXPECT_TRUE(has(error_of([] {}, 1001), {"kernel lambda", "1001 bytes"}));
  EXPECT_NE(error_of([] {}, -1), "");
}

TEST(Launch, RunsEveryBlockOnceInAnyOrder) {
  in_some_orders([] {
    for (const int64_t blocks : {0, 1, 2, 7, 24}) {
      std::vector<int> runs(blocks);
      run_threads<32>([&] { ++runs[block_index()]; }, 0, blocks);
      for (int64_t i = 0; i < blocks; ++i) EXPECT_EQ(runs[i], 32) << i;
    }
  });
}

TEST(Launch, LimitsTheBlocksToWhatAGridHolds) {
  in_some_orders([] {
    int64_t seen = 0;
    EXPECT_THROW(run_threads(
                     [&] {
                       seen = block_count();
                       throw std::runtime_error("enough");
                     },
                     0, int64_t{1} << 40),
                 std::runtime_error);
    EXPECT_EQ(seen, 2147483647);
  });
}

TEST(Launch, ThreadsOfTheTestDoNotShareAnything) {
  const auto work = [] {
    for (int i = 0; i < 50; ++i) {
      EXPECT_EQ(right_after_exchange(32, [] { block_barrier(); }), 64);
    }
  };
  std::thread other(work);
  work();
  other.join();
}

TEST(Launch, TheEnvironmentChoosesTheOrder) {
  const auto first_thread_with = [](const char* order) {
    setenv("TORCH_EXT_FIBER_ORDER", order, 1);
    int first = kUnset;
    std::thread([&] {
      run_threads([&] {
        if (first == kUnset) first = thread_index();
      });
    }).join();
    unsetenv("TORCH_EXT_FIBER_ORDER");
    return first;
  };
  EXPECT_EQ(first_thread_with("forward"), 0);
  EXPECT_EQ(first_thread_with("backward"), 63);
  EXPECT_NE(first_thread_with("3"), first_thread_with("4"));
  EXPECT_EQ(first_thread_with("3"), first_thread_with("3"));
}

}  // namespace
}  // namespace torch_ext::cuda::test
