// Launches on the host: their checks, and the order of blocks and threads.
#include "cuda/primitives/launch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "cuda/primitives/thread.h"
#include "host_threads.h"

namespace torch_ext::cuda::test {
namespace {

constexpr int kUnset = -1;

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
