// Asynchronous copies on the host: what arrives, and when.
#include "cuda/primitives/async_copy.h"

#include <gtest/gtest.h>

#include <cstring>

#include "host_threads.h"

namespace torch_ext::cuda::test {
namespace {

struct alignas(16) Sixteen {
  unsigned char bytes[16];
};
Sixteen numbered(int first) {
  Sixteen x;
  for (int i = 0; i < 16; ++i) x.bytes[i] = static_cast<unsigned char>(first + i);
  return x;
}
// The thread's own 16 bytes of shared memory number `which`.
unsigned char* mine(int which) { return shared_memory() + 16 * (which * 32 + thread_index()); }
bool holds(int which, const Sixteen& x) { return std::memcmp(mine(which), x.bytes, 16) == 0; }

TEST(CopyAsync, ReadsTheFirstBytesAndFillsWithZeros) {
  // A heap block of the right size, so that AddressSanitizer sees what is read.
  for (int bytes = 0; bytes <= 16; ++bytes) {
    const std::vector<unsigned char> source(static_cast<size_t>(bytes), 7);
    const void* global = bytes == 0 ? nullptr : source.data();
    run_threads<32>(
        [&] {
          copy_async(mine(0), global, bytes);
          commit_copies();
          wait_for_copies<0>();
          for (int i = 0; i < 16; ++i) EXPECT_EQ(mine(0)[i], i < bytes ? 7 : 0);
        },
        512);
  }
}

TEST(CopyAsync, IsNotThereBeforeItIsWaitedFor) {
  const Sixteen old = numbered(1), next = numbered(100);
  run_threads<32>(
      [&] {
        std::memcpy(mine(0), old.bytes, 16);
        copy_async(mine(0), next.bytes, 16);
        EXPECT_FALSE(holds(0, old) || holds(0, next));
        commit_copies();
        EXPECT_FALSE(holds(0, old) || holds(0, next));
        wait_for_copies<1>();
        EXPECT_FALSE(holds(0, old) || holds(0, next));
        block_barrier();
        EXPECT_FALSE(holds(0, old) || holds(0, next));
        wait_for_copies<0>();
        EXPECT_TRUE(holds(0, next));
      },
      512);
}

TEST(CopyAsync, GroupsArriveInTheOrderOfTheirCommits) {
  const Sixteen source[4] = {numbered(0), numbered(50), numbered(100), numbered(150)};
  run_threads<32>(
      [&] {
        const auto arrived = [&] {
          int n = 0;
          for (int i = 0; i < 4; ++i) n = 10 * n + holds(i, source[i]);
          return n;
        };
        copy_async(mine(0), source[0].bytes, 16);
        copy_async(mine(1), source[1].bytes, 16);
        commit_copies();
        copy_async(mine(2), source[2].bytes, 16);
        commit_copies();
        commit_copies();                           // an empty group counts
        copy_async(mine(3), source[3].bytes, 16);  // not committed: nobody waits for it
        wait_for_copies<3>();
        EXPECT_EQ(arrived(), 0);
        wait_for_copies<2>();
        EXPECT_EQ(arrived(), 1100);
        wait_for_copies<1>();
        EXPECT_EQ(arrived(), 1110);
        wait_for_copies<0>();
        EXPECT_EQ(arrived(), 1110);
        commit_copies();
        wait_for_copies<0>();
        EXPECT_EQ(arrived(), 1111);
      },
      4 * 512);
}

// A thread waits for its own copies only: for those of others it takes a barrier too.
TEST(CopyAsync, OfOthersNeedABarrier) {
  for (const bool barrier : {true, false}) {
    int wrong = 0;
    in_some_orders([&] {
      const Sixteen source = numbered(3);
      run_threads<32>(
          [&] {
            copy_async(mine(0), source.bytes, 16);
            commit_copies();
            wait_for_copies<0>();
            if (barrier) block_barrier();
            wrong += shared_memory()[16 * (31 - thread_index())] != 3;
          },
          512);
    });
    EXPECT_EQ(wrong == 0, barrier);
  }
}

}  // namespace
}  // namespace torch_ext::cuda::test
