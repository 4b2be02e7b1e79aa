// The only file below csrc/ops that knows torch: its thread pool.
#include "cpu/parallel.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "cpu/pages.h"

namespace torch_ext::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

// What a thread keeps between calls: freshly mapped pages cost more than a small problem's
// arithmetic. Larger buffers, which only large problems need, are given back.
constexpr int64_t kMostKept = 8 << 20;
thread_local Buffer kept;

bool poison_scratch() {
  static const bool poison = [] {
    const char* value = std::getenv("TORCH_EXT_POISON");
    return value && std::strcmp(value, "1") == 0;
  }();
  return poison;
}

}  // namespace

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

void parallel_tasks(int64_t tasks, int64_t scratch_bytes,
                    void (*run)(void* context, int64_t task, void* scratch), void* context) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    Buffer scratch = std::move(kept);  // a call within a task finds none and makes its own
    if (scratch.bytes() < scratch_bytes) scratch = Buffer(scratch_bytes);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      if (scratch_bytes > 0 && poison_scratch())
        std::memset(scratch.data(), 0xff, static_cast<size_t>(scratch_bytes));
      run(context, task, scratch.data());
    }
    if (scratch.bytes() <= kMostKept) kept = std::move(scratch);
  };
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  at::parallel_for(0, threads < tasks ? threads : tasks, 1, work);
}

}  // namespace torch_ext::cpu
