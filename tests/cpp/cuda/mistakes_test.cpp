// The host implementation says what a kernel does wrong, and where.
#include <gtest/gtest.h>

#include "cuda/primitives/async_copy.h"
#include "cuda/primitives/matrix.h"
#include "cuda/primitives/thread.h"
#include "host_threads.h"

namespace torch_ext::cuda::test {
namespace {

TEST(Mistakes, ABarrierThatNotEveryThreadReaches) {
  in_some_orders([] {
    EXPECT_TRUE(has(error_of([] {
                      if (warp_index() == 0) block_barrier();
                    }),
                    {"kernel lambda, block 0: no thread can go on",
                     "threads 0 to 31: wait at block_barrier (mistakes_test.cpp:",
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

TEST(Mistakes, APauseThatNobodyEnds) {
  in_some_orders([] {
    EXPECT_TRUE(has(error_of([] {
                      if (thread_index() == 3) host::pause("wait", host::Location::current());
                      block_barrier();
                    }),
                    {"no thread can go on", "threads 3 to 3: wait at wait (mistakes_test.cpp:",
                     "threads 4 to 63: wait at block_barrier"}));
    bool said = false;
    const std::string error = error_of([&] {
      if (thread_index() == 3) {
        while (!said) host::pause("wait", host::Location::current());
      } else if (thread_index() == 40) {
        said = true;
        host::notify();
      }
      block_barrier();
    });
    EXPECT_EQ(error, "");
  });
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

}  // namespace
}  // namespace torch_ext::cuda::test
