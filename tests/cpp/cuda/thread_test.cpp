// Shuffles, barriers and shared memory on the host; a missing barrier shows.
#include "cuda/primitives/thread.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "cuda/primitives/numbers.h"
#include "host_threads.h"

namespace torch_ext::cuda::test {
namespace {

constexpr int kUnset = -1;

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

#if defined(__SANITIZE_ADDRESS__) && defined(__x86_64__)  // swapcontext has an ASan of its own
TEST(ThreadsDeathTest, AddressSanitizerKnowsWhereSharedMemoryEnds) {
  EXPECT_DEATH(run_threads([] { shared_memory()[100 + lane_index()] = 0; }, 100),
               "AddressSanitizer");
}
TEST(ThreadsDeathTest, AddressSanitizerKnowsTheStacks) {
  EXPECT_DEATH(run_threads([] {
                 char local[16];
                 char* volatile end = local + 16;
                 block_barrier();
                 *end = 0;
               }),
               "stack-buffer-overflow");
}
#endif

}  // namespace
}  // namespace torch_ext::cuda::test
