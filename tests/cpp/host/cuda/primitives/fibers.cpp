#include "cuda/primitives/fibers.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/primitives/context.h"

#ifdef __x86_64__
asm(R"(
.text
.globl torch_ext_switch_stack
.hidden torch_ext_switch_stack
.type torch_ext_switch_stack, @function
torch_ext_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size torch_ext_switch_stack, . - torch_ext_switch_stack
)");
#endif

namespace torch_ext::cuda::host {
namespace {

constexpr int kWarpSize = 32, kMaxWarps = 32;

// Threads that have arrived at one place and wait for the others of their group.
struct Meeting {
  int arrived = 0;
  const char* name = nullptr;
  Location where;
  void* operands[kWarpSize * kMaxWarps];
};

struct Fiber {
  explicit Fiber(void (*entry)()) : context(entry) {}
  Context context;
  Thread thread;
  const Meeting* waits = nullptr;
  const char* paused_at = nullptr;
  Location paused_where;
  bool ended = false;
};

std::string to_string(const Location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

bool is_same(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

Order order_of_environment() {
  const char* text = std::getenv("TORCH_EXT_FIBER_ORDER");
  if (text == nullptr || std::strcmp(text, "forward") == 0) return {};
  if (std::strcmp(text, "backward") == 0) return {Order::Backward, 0};
  return {Order::Shuffled, std::strtoull(text, nullptr, 10)};
}

// The blocks of this std::thread. Stacks are kept from one launch to the next.
class Runner {
 public:
  void run(const Grid& grid, void (*body)(const void*), const void* parameters);
  void meet(Group group, const char* name, const Location& where, void* operand, Act act);
  void pause(const char* name, const Location& where);
  void notify();
  std::string here() const;

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  void run_block(int64_t block);
  void run_threads();  // what a fiber does, block after block
  void wake_all();
  Fiber& next();
  Fiber& fiber(int thread) { return *fibers_[static_cast<size_t>(thread)]; }
  void switch_to(Fiber& to);
  int64_t random(int64_t n);
  std::vector<int64_t> block_order();
  std::string states();

  Grid grid_{};
  void (*body_)(const void*) = nullptr;
  const void* parameters_ = nullptr;

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<int> paused_;  // threads
  Context main_;
  Fiber* self_ = nullptr;
  std::exception_ptr error_;
  int ended_ = 0;

  // Bit sets of the threads that can go on: lanes of each warp, and warps that have any.
  uint32_t ready_lanes_[kMaxWarps] = {}, ready_warps_ = 0;
  Meeting of_warp_[kMaxWarps], of_block_;
  Order order_;
  uint64_t random_ = 0;
};

thread_local Runner runner;

// A number in [0, n): splitmix64.
int64_t Runner::random(int64_t n) {
  uint64_t x = random_ += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return static_cast<int64_t>((x ^ x >> 31) % static_cast<uint64_t>(n));
}

std::vector<int64_t> Runner::block_order() {
  std::vector<int64_t> blocks(static_cast<size_t>(grid_.blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  for (int64_t last = grid_.blocks - 1; last > 0 && order_.kind != Order::Forward; --last) {
    const int64_t other =
        order_.kind == Order::Shuffled ? random(last + 1) : grid_.blocks - 1 - last;
    if (order_.kind == Order::Backward && other >= last) break;
    std::swap(blocks[static_cast<size_t>(last)], blocks[static_cast<size_t>(other)]);
  }
  return blocks;
}

void Runner::run(const Grid& grid, void (*body)(const void*), const void* parameters) {
  if (self_ != nullptr) throw std::logic_error("a kernel cannot launch kernels");
  if (grid.shared_bytes < 0 || grid.shared_bytes > device().shared_memory_limit) {
    throw std::runtime_error("torch_ext: kernel " + std::string(grid.kernel) + ": " +
                             std::to_string(grid.shared_bytes) +
                             " bytes of shared memory, of which there are " +
                             std::to_string(device().shared_memory_limit));
  }
  grid_ = grid;
  body_ = body;
  parameters_ = parameters;
  order_ = device().order;
  random_ = order_.seed;
  while (fibers_.size() < static_cast<size_t>(grid.threads)) {
    fibers_.push_back(std::make_unique<Fiber>([] { runner.run_threads(); }));
    fibers_.back()->thread.index = static_cast<int>(fibers_.size()) - 1;
  }
  void* memory = nullptr;
  const size_t bytes = static_cast<size_t>(grid.shared_bytes);
  if (posix_memalign(&memory, 1024, bytes) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, Free> shared(memory);
  for (int64_t block : block_order()) {
    std::memset(memory, 0xff, bytes);  // NaN in every format
    running = {nullptr, block,   grid.blocks, static_cast<unsigned char*>(memory),
               grid.shared_bytes, nullptr};
    run_block(block);
  }
}

void Runner::run_block(int64_t) {
  ended_ = 0;
  wake_all();
  for (int i = 0; i < grid_.threads; ++i) {
    fiber(i).ended = false;
    fiber(i).paused_at = nullptr;
    fiber(i).thread.copies.clear();
    fiber(i).thread.groups = 0;
  }
  self_ = &next();
  running.thread = &self_->thread;
  main_.switch_to(self_->context);
  self_ = nullptr;
  if (error_ == nullptr) return;
  // Some threads will never end: their stacks are of no more use.
  fibers_.clear();
  for (Meeting& meeting : of_warp_) meeting.arrived = 0;
  of_block_.arrived = 0;
  paused_.clear();
  ready_warps_ = 0;
  for (uint32_t& lanes : ready_lanes_) lanes = 0;
  std::rethrow_exception(std::exchange(error_, nullptr));
}

void Runner::run_threads() {
  self_->context.arrive();
  for (;;) {
    Fiber& self = *self_;
    const int warp = self.thread.index / kWarpSize;
    Fiber* to = nullptr;
    try {
      body_(parameters_);
      self.ended = true;
      ++ended_;
      ready_lanes_[warp] &= ~(1u << self.thread.index % kWarpSize);
      if (ready_lanes_[warp] == 0) ready_warps_ &= ~(1u << warp);
      if (ended_ < grid_.threads) to = &next();
    } catch (...) {
      error_ = std::current_exception();
    }
    if (to != nullptr) {
      switch_to(*to);
    } else {
      self.context.switch_to(main_);
    }
  }
}

void Runner::wake_all() {
  const int warps = grid_.threads / kWarpSize;
  for (int warp = 0; warp < warps; ++warp) ready_lanes_[warp] = ~0u;
  ready_warps_ = ~0u >> (kMaxWarps - warps);
}

// One of the set bits.
Fiber& Runner::next() {
  if (ready_warps_ == 0) {
    throw std::runtime_error("torch_ext: kernel " + std::string(grid_.kernel) + ", block " +
                             std::to_string(running.block) + ": no thread can go on" + states());
  }
  const auto choose = [this](uint32_t bits) {
    if (order_.kind == Order::Forward) return std::countr_zero(bits);
    if (order_.kind == Order::Backward) return 31 - std::countl_zero(bits);
    const int start = static_cast<int>(random(32));
    return (start + std::countr_zero(std::rotr(bits, start))) % 32;
  };
  const int warp = choose(ready_warps_);
  return fiber(warp * kWarpSize + choose(ready_lanes_[warp]));
}

void Runner::switch_to(Fiber& to) {
  if (&to == self_) return;
  Fiber& from = *std::exchange(self_, &to);
  running.thread = &to.thread;
  from.context.switch_to(to.context);
}

void Runner::meet(Group group, const char* name, const Location& where, void* operand, Act act) {
  Fiber& self = *self_;
  const int thread = self.thread.index, warp = thread / kWarpSize, lane = thread % kWarpSize;
  const bool of_warp = group == Group::Warp;
  Meeting& meeting = of_warp ? of_warp_[warp] : of_block_;
  if (meeting.arrived == 0) {
    meeting.name = name;
    meeting.where = where;
  } else if (!is_same(where, meeting.where) || std::strcmp(name, meeting.name) != 0) {
    throw std::runtime_error(here() + " is at " + name + " (" + to_string(where) +
                             ") when others of its " + (of_warp ? "warp" : "block") +
                             " wait elsewhere" + states());
  }
  meeting.operands[of_warp ? lane : thread] = operand;
  self.waits = &meeting;
  ready_lanes_[warp] &= ~(1u << lane);
  if (++meeting.arrived == (of_warp ? kWarpSize : grid_.threads)) {
    if (act != nullptr) act(meeting.operands, meeting.arrived);
    meeting.arrived = 0;
    if (of_warp) {
      ready_lanes_[warp] = ~0u;
    } else {
      wake_all();
    }
  }
  if (ready_lanes_[warp] == 0) ready_warps_ &= ~(1u << warp);
  switch_to(next());
  self.waits = nullptr;
}

void Runner::pause(const char* name, const Location& where) {
  Fiber& self = *self_;
  const int thread = self.thread.index, warp = thread / kWarpSize;
  self.paused_at = name;
  self.paused_where = where;
  paused_.push_back(thread);
  ready_lanes_[warp] &= ~(1u << thread % kWarpSize);
  if (ready_lanes_[warp] == 0) ready_warps_ &= ~(1u << warp);
  switch_to(next());
}

void Runner::notify() {
  for (const int thread : paused_) {
    fiber(thread).paused_at = nullptr;
    ready_lanes_[thread / kWarpSize] |= 1u << thread % kWarpSize;
    ready_warps_ |= 1u << thread / kWarpSize;
  }
  paused_.clear();
}

std::string Runner::here() const {
  return "torch_ext: kernel " + std::string(grid_.kernel) + ", block " +
         std::to_string(running.block) + ", thread " + std::to_string(running.thread->index);
}

// Where every thread is, in groups of threads at the same place.
std::string Runner::states() {
  const auto state = [this](int thread) -> std::string {
    const Fiber& f = fiber(thread);
    if (f.ended) return "ended";
    if (f.paused_at != nullptr) {
      return std::string("wait at ") + f.paused_at + " (" + to_string(f.paused_where) + ")";
    }
    if (f.waits == nullptr || f.waits->arrived == 0) return "running";
    return std::string("wait at ") + f.waits->name + " (" + to_string(f.waits->where) + ")";
  };
  std::string text;
  for (int first = 0, thread = 0; first < grid_.threads; first = thread) {
    const std::string what = state(first);
    while (thread < grid_.threads && state(thread) == what) ++thread;
    text +=
        "\n  threads " + std::to_string(first) + " to " + std::to_string(thread - 1) + ": " + what;
  }
  return text;
}

}  // namespace

Device& device() {
  thread_local Device device{.order = order_of_environment()};
  return device;
}

void run(const Grid& grid, void (*body)(const void*), const void* parameters) {
  runner.run(grid, body, parameters);
}

void meet(Group group, const char* name, const Location& where, void* operand, Act act) {
  runner.meet(group, name, where, operand, act);
}

void pause(const char* name, const Location& where) { runner.pause(name, where); }
void notify() { runner.notify(); }

void fail(const char* name, const Location& where, const char* what) {
  throw std::runtime_error(runner.here() + ": " + name + " (" + to_string(where) + "): " + what);
}

void check_shared(const void* address, int64_t bytes, const char* name, const Location& where) {
  const int64_t offset = static_cast<const unsigned char*>(address) - running.shared;
  if (offset < 0 || offset + bytes > running.shared_bytes) {
    fail(name, where, "the address lies outside shared memory");
  }
  if (offset % 16 != 0) fail(name, where, "the shared address is not a multiple of 16");
}

}  // namespace torch_ext::cuda::host
