#include "cuda/primitives/fibers.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/primitives/context.h"
#include "cuda/primitives/schedule.h"

namespace torch_ext::cuda::host {
namespace {

constexpr int kWarpSize = Schedule::kWarpSize, kMaxWarps = Schedule::kMaxWarps;

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
  // Where it waits if it cannot go on.
  const char* name = nullptr;
  Location where;
  bool ended = false;
};

std::string to_string(const Location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

// One literal has one address nearly always.
bool is_same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
bool is_same(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() && is_same(a.file_name(), b.file_name());
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
  void pause_until_idle(const char* name, const Location& where);
  void notify();
  std::string here() const;

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  void run_block();
  void run_threads();  // what a fiber does, block after block
  Fiber& next();
  Fiber& fiber(int thread) { return *fibers_[static_cast<size_t>(thread)]; }
  void switch_to(Fiber& to);
  void sleep(const char* name, const Location& where);
  std::string states();

  Grid grid_{};
  void (*body_)(const void*) = nullptr;
  const void* parameters_ = nullptr;
  std::shared_ptr<void> hopper_;  // of the block

  std::vector<std::unique_ptr<Fiber>> fibers_;
  Context main_;
  Fiber* self_ = nullptr;
  std::exception_ptr error_;
  int ended_ = 0;

  Schedule schedule_;
  Meeting of_warp_[kMaxWarps], of_block_;
  std::vector<int> paused_, paused_until_idle_;  // threads
};

thread_local Runner runner;

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
  schedule_ = Schedule(device().order, grid.blocks, grid.threads);
  while (fibers_.size() < static_cast<size_t>(grid.threads)) {
    fibers_.push_back(std::make_unique<Fiber>([] { runner.run_threads(); }));
    fibers_.back()->thread.index = static_cast<int>(fibers_.size()) - 1;
  }
  void* memory = nullptr;
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(grid.shared_bytes, 1));
  if (posix_memalign(&memory, 1024, bytes) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, Free> shared(memory);
  for (int64_t i = 0; i < grid.blocks; ++i) {
    std::memset(memory, 0xff, bytes);  // NaN in every format
    running = {nullptr,           schedule_.next_block(),
               grid.blocks,       static_cast<unsigned char*>(memory),
               grid.shared_bytes, &hopper_};
    hopper_ = nullptr;
    run_block();
  }
}

void Runner::run_block() {
  ended_ = 0;
  schedule_.wake_block();
  for (int i = 0; i < grid_.threads; ++i) {
    fiber(i).ended = false;
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
  paused_until_idle_.clear();
  std::rethrow_exception(std::exchange(error_, nullptr));
}

void Runner::run_threads() {
  self_->context.arrive();
  for (;;) {
    Fiber& self = *self_;
    Fiber* to = nullptr;
    try {
      body_(parameters_);
      self.ended = true;
      ++ended_;
      schedule_.sleep(self.thread.index);
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

Fiber& Runner::next() {
  if (schedule_.is_stuck()) {
    for (const int thread : paused_until_idle_) schedule_.wake(thread);
    paused_until_idle_.clear();
  }
  if (!schedule_.is_stuck()) return fiber(schedule_.next_thread());
  throw std::runtime_error("torch_ext: kernel " + std::string(grid_.kernel) + ", block " +
                           std::to_string(running.block) + ": no thread can go on" + states());
}

void Runner::switch_to(Fiber& to) {
  if (&to == self_) return;
  Fiber& from = *std::exchange(self_, &to);
  running.thread = &to.thread;
  from.context.switch_to(to.context);
}

void Runner::meet(Group group, const char* name, const Location& where, void* operand, Act act) {
  Fiber& self = *self_;
  const int thread = self.thread.index, warp = thread / kWarpSize;
  const bool of_warp = group == Group::Warp;
  Meeting& meeting = of_warp ? of_warp_[warp] : of_block_;
  if (meeting.arrived == 0) {
    meeting.name = name;
    meeting.where = where;
  } else if (!is_same(where, meeting.where) || !is_same(name, meeting.name)) {
    throw std::runtime_error(here() + " is at " + name + " (" + to_string(where) +
                             ") when others of its " + (of_warp ? "warp" : "block") +
                             " wait elsewhere" + states());
  }
  meeting.operands[of_warp ? thread % kWarpSize : thread] = operand;
  self.name = name;
  self.where = where;
  schedule_.sleep(thread);
  if (++meeting.arrived == (of_warp ? kWarpSize : grid_.threads)) {
    if (act != nullptr) act(meeting.operands, meeting.arrived);
    meeting.arrived = 0;
    if (of_warp) {
      schedule_.wake_warp(warp);
    } else {
      schedule_.wake_block();
    }
  }
  switch_to(next());
}

void Runner::pause(const char* name, const Location& where) {
  paused_.push_back(self_->thread.index);
  sleep(name, where);
}

void Runner::pause_until_idle(const char* name, const Location& where) {
  paused_until_idle_.push_back(self_->thread.index);
  sleep(name, where);
}

void Runner::sleep(const char* name, const Location& where) {
  self_->name = name;
  self_->where = where;
  schedule_.sleep(self_->thread.index);
  switch_to(next());
}

void Runner::notify() {
  for (const int thread : paused_) schedule_.wake(thread);
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
    if (f.ended) return "have ended";
    if (schedule_.can_go_on(thread)) return "can go on";
    return std::string("wait at ") + f.name + " (" + to_string(f.where) + ")";
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
void pause_until_idle(const char* name, const Location& where) {
  runner.pause_until_idle(name, where);
}
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
