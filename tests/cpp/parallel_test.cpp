// Tasks, scratch, and results that do not depend on the threads.
#include "cpu/parallel.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "compare.h"

namespace {

std::atomic<int> allocations_in_tasks{0};

void* allocate(size_t bytes, size_t alignment) {
  if (at::in_parallel_region()) ++allocations_in_tasks;
  void* memory = std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
  return memory ? memory : throw std::bad_alloc();
}

}  // namespace

// The whole program's memory, so that tasks are seen to allocate none.
void* operator new(size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace torch_ext::test {
namespace {

// The whole program runs with poisoned scratch: what a kernel reads without having written it is
// NaN.
class PoisonedScratch : public testing::Environment {
  void SetUp() override { setenv("TORCH_EXT_POISON", "1", 1); }
};
const testing::Environment* const kPoisonedScratch =
    testing::AddGlobalTestEnvironment(new PoisonedScratch);

class ParallelTest : public testing::Test {
 protected:
  void TearDown() override { at::set_num_threads(threads_); }
  const int threads_ = at::get_num_threads();
};

TEST_F(ParallelTest, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    at::set_num_threads(threads);
    for (const int64_t tasks : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      cpu::parallel_tasks(tasks, 0, [&](int64_t task, void*) { ++runs[task]; });
      for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST_F(ParallelTest, OneThreadIsToldWhichTaskComesNext) {
  at::set_num_threads(1);
  for (const int64_t tasks : {1, 2, 100}) {
    std::vector<int64_t> order, announced;
    cpu::parallel_tasks(tasks, 0, [&](int64_t task, int64_t next, void*) {
      order.push_back(task);
      announced.push_back(next);
    });
    order.push_back(-1);
    order.erase(order.begin());
    EXPECT_EQ(order, announced);
  }
}

TEST_F(ParallelTest, ThreadsTakeNeighbours) {
  constexpr int64_t kTasks = 400;
  at::set_num_threads(4);
  std::atomic<int64_t> neighbours{0};
  cpu::parallel_tasks(kTasks, 0, [&](int64_t task, int64_t next, void*) {
    EXPECT_TRUE(next == -1 || (task < next && next < kTasks)) << task << " " << next;
    neighbours += next == task + 1;
  });
  EXPECT_GE(neighbours, kTasks / 2);
}

TEST_F(ParallelTest, ScratchIsAlignedPrivateAndPoisoned) {
  at::set_num_threads(3);
  std::atomic<int> misaligned{0}, clean{0}, shared{0};
  for (const int64_t bytes : {1, 64, 1000, 100000}) {
    cpu::parallel_tasks(200, bytes, [&](int64_t task, void* scratch) {
      auto* memory = static_cast<unsigned char*>(scratch);
      misaligned += reinterpret_cast<uintptr_t>(scratch) % 64 != 0;
      for (int64_t i = 0; i < bytes; ++i) clean += memory[i] != 0xff;
      std::memset(memory, static_cast<int>(task % 100), bytes);
      for (int64_t i = 0; i < bytes; ++i) shared += memory[i] != task % 100;
    });
  }
  EXPECT_EQ(misaligned, 0);
  EXPECT_EQ(clean, 0);
  EXPECT_EQ(shared, 0);
}

TEST_F(ParallelTest, TasksMayRunTasksAndKeepTheirScratch) {
  at::set_num_threads(3);
  std::atomic<int> inner{0}, changed{0};
  cpu::parallel_tasks(5, 64, [&](int64_t task, void* scratch) {
    auto* memory = static_cast<unsigned char*>(scratch);
    std::memset(memory, static_cast<int>(task), 64);
    for (const int64_t bytes : {64, 100000})
      cpu::parallel_tasks(7, bytes, [&](int64_t, void* other) {
        std::memset(other, 0x55, bytes);
        ++inner;
      });
    for (int i = 0; i < 64; ++i) changed += memory[i] != task;
  });
  EXPECT_EQ(inner, 70);
  EXPECT_EQ(changed, 0);
}

TEST_F(ParallelTest, NoTaskAllocatesMemory) {
  at::set_num_threads(3);
  allocations_in_tasks = 0;
  cpu::parallel_tasks(3, 0, [](int64_t, void*) { ::operator delete(::operator new(1)); });
  EXPECT_EQ(allocations_in_tasks.exchange(0), 3);  // they would be seen

  Options options;
  options.bias = "NM";
  options.mask = "BM";
  options.slopes = options.sink = "H";
  options.dropout_p = 0.2;
  for (const Shape& shape : {Shape{3, 4, 2, 200, 700, 5, 3}, Shape{3, 4, 2, 5, 700, 64, 96}})
    for (const cpu::Implementation& level : fast_implementations()) {
      SCOPED_TRACE(level.name);
      Case c(shape, options);
      // A thread whose calls have left it no scratch yet.
      std::thread([&] { all_results(c, level); }).join();
      EXPECT_EQ(allocations_in_tasks.exchange(0), 0);
    }
}

// Query heads in several tasks of the gradients because they read the same few keys.
constexpr Shape kManyHeadsOfFewKeys = {2, 26, 2, 70, 90, 5, 3};

TEST_F(ParallelTest, HeadsInSeveralTasksAgreeWithTheReference) {
  at::set_num_threads(3);  // which the four key heads alone would not keep busy
  for (const char* bias : {"", "HNM", "NM"}) {
    Options options;
    options.bias = bias;
    options.mask = "BM";
    options.softcap = 2;
    options.slopes = options.sink = "H";
    options.dropout_p = 0.2;
    expect_agreement_of(kManyHeadsOfFewKeys, options);
  }
}

TEST_F(ParallelTest, SameBitsForAnyNumberOfThreads) {
  for (const Shape& shape :
       {Shape{3, 4, 2, 200, 700, 5, 3}, Shape{3, 4, 2, 700, 200, 5, 3}, kManyHeadsOfFewKeys})
    for (const char* bias : {"", "NM", "M", "BHNM"}) {
      Options options;
      options.bias = bias;
      options.is_causal = true;
      options.slopes = options.sink = "H";
      options.dropout_p = 0.2;
      Case c(shape, options);
      for (const cpu::Implementation& level : fast_implementations()) {
        at::set_num_threads(1);
        const auto one = all_results(c, level);
        for (const int threads : {2, 3, 7}) {
          at::set_num_threads(threads);
          SCOPED_TRACE(std::string(level.name) + " with " + std::to_string(threads) + " threads");
          expect_same_bits(all_results(c, level), one);
        }
      }
    }
}

}  // namespace
}  // namespace torch_ext::test
