// The host implementation of cuda/primitives: kernels run on the CPU, for tests.
//
// A test program puts this tree before csrc in its include path; kernels then find the headers
// beside this one under the names that they include anyway. A block's threads are fibers: one of
// them runs until it has to wait for others, at a barrier or at an instruction of a whole warp.
// What the hardware leaves undefined ends in an exception that says where: lanes of a warp at
// different instructions, threads that wait for one that has ended, addresses outside shared
// memory. A missing barrier shows as a wrong result in some order of the threads (Order), because
// shared memory starts as NaNs and so does, until waited for, the target of an asynchronous copy.
#pragma once

#include <cstdint>
#include <memory>
#include <source_location>
#include <type_traits>
#include <vector>

namespace torch_ext::cuda::host {

// Where a kernel called a primitive.
using Location = std::source_location;

// Which of the threads that can go on does, and which block comes first.
struct Order {
  enum Kind { Forward, Backward, Shuffled } kind = Forward;
  uint64_t seed = 0;  // of Shuffled
};

// What launches of this std::thread see. The order is TORCH_EXT_FIBER_ORDER (forward, backward or
// a seed) until changed.
struct Device {
  int processors = 3;
  int64_t shared_memory_limit = 163 * 1024;
  int64_t grid_limit = (int64_t{1} << 31) - 1;  // blocks of one launch
  Order order;
  // Whether what Hopper does asynchronously happens as soon as it may, or as late.
  bool copies_early = false, products_early = false;
};
Device& device();

// Another Device while this lives.
class WithDevice {
 public:
  explicit WithDevice(const Device& changed) : previous_(device()) { device() = changed; }
  WithDevice(const WithDevice&) = delete;
  ~WithDevice() { device() = previous_; }

 private:
  Device previous_;
};

struct Grid {
  const char* kernel;
  int64_t blocks;
  int threads;
  int64_t shared_bytes;
};

// Calls body(parameters) on every thread of every block. Throws what a thread throws, and
// std::runtime_error for what the kernel does wrong.
void run(const Grid& grid, void (*body)(const void*), const void* parameters);

// 16 bytes on their way to shared memory; they belong to the thread's group number `group`.
struct PendingCopy {
  void* target;
  unsigned char bytes[16];
  int64_t group;
};

// The thread that runs, and its block.
struct Thread {
  int index = 0;
  std::vector<PendingCopy> copies;
  int64_t groups = 0;  // of copies that have been committed
};
struct Running {
  Thread* thread = nullptr;
  int64_t block = 0, blocks = 0;
  unsigned char* shared = nullptr;
  int64_t shared_bytes = 0;
  std::shared_ptr<void>* hopper = nullptr;  // the block's state in hopper_block.h
};
// Read at every step: with a destructor every access would first ask whether it is registered.
static_assert(std::is_trivially_destructible_v<Running>);
inline constinit thread_local Running running;

// Waits for the other threads of the warp or the block, which must come from the same place. The
// last one calls act(operands, threads) with what each of them brought, then all go on.
enum class Group { Warp, Block };
using Act = void (*)(void* const* operands, int threads);
void meet(Group group, const char* name, const Location& where, void* operand, Act act);

// Waits until another thread calls notify(), which may be about something else.
void pause(const char* name, const Location& where);
void notify();
// Waits until no other thread can go on.
void pause_until_idle(const char* name, const Location& where);

// Throws unless `bytes` at `address` lie inside the block's shared memory, aligned to 16 bytes.
void check_shared(const void* address, int64_t bytes, const char* name, const Location& where);
// Throws what went wrong in the running thread.
[[noreturn]] void fail(const char* name, const Location& where, const char* what);

}  // namespace torch_ext::cuda::host
