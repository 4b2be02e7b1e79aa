// Threads and memory for the kernels: torch's threads, 64-byte aligned buffers, huge pages.
//
// Everything is declared here and defined in parallel.cpp, so that files compiled for one
// instruction set emit no code of it that others could link to.
#pragma once

#include <cstdint>

namespace torch_ext::cpu {

// Asks for huge pages inside large memory, before it is written. The system maps fresh memory page
// by page when it is first touched, and with 4 KiB pages that takes longer than the arithmetic of
// many problems. Pages that reach beyond the memory are left as they are, so that it takes no more
// of them. Does nothing where the system has no such pages.
void prefer_huge_pages(void* start, int64_t bytes);

// 64-byte aligned memory, uninitialised.
class Buffer {
 public:
  Buffer();
  explicit Buffer(int64_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void* data() const;
  int64_t bytes() const;

 private:
  void* data_;
  int64_t bytes_;
};

// How many threads take part in the tasks of a call, of `most` at most: 1 inside a task that runs
// beside others.
int64_t threads_for_tasks(int64_t most);

// Calls run(context, task, next, scratch) once for each task in [0, tasks). Free threads take a few
// neighbouring tasks, one at a time towards the end, so the order of the tasks, not their number
// per thread, decides the balance: put long ones first. `next` is the task that the same thread
// most likely runs afterwards, -1 if there is none: its operands can be fetched meanwhile. No
// result may depend on which thread runs a task. `scratch` is 64-byte aligned, private to the call
// and the thread, of `scratch_bytes` bytes, allocated before the first task runs, and holds garbage
// (NaN where TORCH_EXT_POISON=1). At most `most_threads` threads take part. Tasks may call
// parallel_tasks; it runs on their own thread where several threads run tasks.
void parallel_tasks(int64_t tasks, int64_t scratch_bytes,
                    void (*run)(void* context, int64_t task, int64_t next, void* scratch),
                    void* context, int64_t most_threads);

// The same from a callable run(task, next, scratch) or run(task, scratch), kept alive by the caller
// for the duration of the call.
template <class Run>
inline __attribute__((always_inline)) void parallel_tasks(int64_t tasks, int64_t scratch_bytes,
                                                          const Run& run,
                                                          int64_t most_threads = INT64_MAX) {
  parallel_tasks(
      tasks, scratch_bytes,
      [](void* context, int64_t task, int64_t next, void* scratch) {
        const Run& call = *static_cast<const Run*>(context);
        if constexpr (requires { call(task, next, scratch); })
          call(task, next, scratch);
        else
          call(task, scratch);
      },
      const_cast<Run*>(&run), most_threads);
}

}  // namespace torch_ext::cpu
