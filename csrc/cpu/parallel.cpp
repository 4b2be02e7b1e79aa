// The only file below csrc/ops that knows torch: its thread pool.
#include "cpu/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace torch_ext::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

// The scratch that a thread's calls leave to its next one, one buffer for each thread that works
// for it: freshly mapped pages cost more than a small problem's arithmetic. Buffers of more bytes
// than these, which only large problems need, are given back.
constexpr int64_t kMostKept = 8 << 20;
thread_local std::vector<Buffer> kept;

// Neighbouring tasks that a thread takes at once, at most.
constexpr int64_t kMostAtOnce = 16;

bool poison_scratch() {
  static const bool poison = [] {
    const char* value = std::getenv("TORCH_EXT_POISON");
    return value && std::strcmp(value, "1") == 0;
  }();
  return poison;
}

}  // namespace

void prefer_huge_pages([[maybe_unused]] void* start, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  constexpr int64_t kSmallest = 2 * kPage;  // holds one such page wherever it starts
  if (bytes < kSmallest) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(start);
  const uintptr_t first = (address + kPage - 1) / kPage * kPage;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  // Only advice: a refusal changes nothing but the time.
  (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

Buffer::Buffer() : data_(nullptr), bytes_(0) {}

Buffer::Buffer(int64_t bytes)
    : data_(bytes ? ::operator new(static_cast<size_t>(bytes), kAlignment) : nullptr),
      bytes_(bytes) {
  prefer_huge_pages(data_, bytes_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (data_) ::operator delete(data_, kAlignment);
}

void* Buffer::data() const { return data_; }
int64_t Buffer::bytes() const { return bytes_; }

int64_t threads_for_tasks(int64_t most) {
  return at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), most);
}

void parallel_tasks(int64_t tasks, int64_t scratch_bytes,
                    void (*run)(void* context, int64_t task, int64_t next, void* scratch),
                    void* context, int64_t most_threads) {
  const int64_t threads = threads_for_tasks(most_threads);
  std::atomic<int64_t> unclaimed{0};
  // A share of the tasks that are left, so that all threads end at about the same time.
  const auto claim = [&](int64_t& begin) {
    begin = unclaimed.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t share = (tasks - begin) / (4 * threads);
      const int64_t end = std::min(tasks, begin + std::clamp<int64_t>(share, 1, kMostAtOnce));
      if (begin >= tasks) return tasks;
      if (unclaimed.compare_exchange_weak(begin, end, std::memory_order_relaxed)) return end;
    }
  };
  // Memory is allocated here, where one thread runs, but first touched by the thread it is for.
  const int64_t workers = std::min(threads, tasks);
  std::vector<Buffer> scratch = std::move(kept);  // a call within a task finds none
  if (std::ssize(scratch) < workers) scratch.resize(static_cast<size_t>(workers));
  for (int64_t i = 0; i < workers; ++i)
    if (scratch[i].bytes() < scratch_bytes) scratch[i] = Buffer(scratch_bytes);
  const auto work = [&](int64_t worker, int64_t) {
    void* const memory = scratch[worker].data();
    int64_t task, end = claim(task);
    while (task < end) {
      if (scratch_bytes > 0 && poison_scratch())
        std::memset(memory, 0xff, static_cast<size_t>(scratch_bytes));
      const int64_t next = task + 1 < end ? task + 1 : unclaimed.load(std::memory_order_relaxed);
      run(context, task, next < tasks ? next : -1, memory);
      if (++task == end) end = claim(task);
    }
  };
  at::parallel_for(0, workers, 1, work);
  for (Buffer& buffer : scratch)
    if (buffer.bytes() > kMostKept) buffer = Buffer();
  kept = std::move(scratch);
}

}  // namespace torch_ext::cpu
