// Runs independent tasks on torch's threads. Declared without templates so that files compiled for
// one instruction set can call it without emitting code of their own that others could link to.
#pragma once

#include <cstdint>

namespace torch_ext::cpu {

// Calls run(context, task, scratch) once for each task in [0, tasks). Threads take the next task
// when they are free, so the order of the tasks, not their number per thread, decides the balance:
// put long ones first. No result may depend on which thread runs a task. `scratch` is 64-byte
// aligned, private to the thread, of `scratch_bytes` bytes and holds garbage (NaN where
// TORCH_EXT_POISON=1).
void parallel_tasks(int64_t tasks, int64_t scratch_bytes,
                    void (*run)(void* context, int64_t task, void* scratch), void* context);

// The same from a callable, kept alive by the caller for the duration of the call.
template <class Run>
inline __attribute__((always_inline)) void parallel_tasks(int64_t tasks, int64_t scratch_bytes,
                                                          const Run& run) {
  parallel_tasks(
      tasks, scratch_bytes,
      [](void* context, int64_t task, void* scratch) {
        (*static_cast<const Run*>(context))(task, scratch);
      },
      const_cast<Run*>(&run));
}

// 64-byte aligned memory that outlives no call: buffers shared between tasks.
void* allocate_shared(int64_t bytes);
void free_shared(void* memory);

}  // namespace torch_ext::cpu
