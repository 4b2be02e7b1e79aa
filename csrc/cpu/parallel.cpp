#include "cpu/parallel.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace torch_ext::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

// A thread's scratch, kept between calls: freshly mapped pages cost more than a small problem's
// arithmetic.
class ThreadScratch {
 public:
  ~ThreadScratch() { release(); }

  void* reserve(int64_t bytes) {
    if (bytes > capacity_) {
      release();
      memory_ = ::operator new(static_cast<size_t>(bytes), kAlignment);
      capacity_ = bytes;
    }
    return memory_;
  }

 private:
  void release() {
    if (memory_) ::operator delete(memory_, kAlignment);
    memory_ = nullptr;
    capacity_ = 0;
  }

  void* memory_ = nullptr;
  int64_t capacity_ = 0;
};

bool poison_scratch() {
  static const bool poison = [] {
    const char* value = std::getenv("TORCH_EXT_POISON");
    return value && std::strcmp(value, "1") == 0;
  }();
  return poison;
}

}  // namespace

void parallel_tasks(int64_t tasks, int64_t scratch_bytes,
                    void (*run)(void* context, int64_t task, void* scratch), void* context) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    thread_local ThreadScratch thread_scratch;
    void* scratch = thread_scratch.reserve(scratch_bytes);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      if (poison_scratch()) std::memset(scratch, 0xff, static_cast<size_t>(scratch_bytes));
      run(context, task, scratch);
    }
  };
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  at::parallel_for(0, threads < tasks ? threads : tasks, 1, work);
}

void* allocate_shared(int64_t bytes) {
  return ::operator new(static_cast<size_t>(bytes), kAlignment);
}
void free_shared(void* memory) { ::operator delete(memory, kAlignment); }

}  // namespace torch_ext::cpu
