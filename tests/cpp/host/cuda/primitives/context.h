// A suspended flow of control with a stack of its own, and the switch from one to another.
//
// On x86-64 the switch is a few instructions; elsewhere it is swapcontext, which also asks the
// kernel for the signal mask. AddressSanitizer is told of both.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define TORCH_EXT_HAVE_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TORCH_EXT_HAVE_ASAN
#endif
#endif
#ifdef TORCH_EXT_HAVE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
// Saves the registers that a call preserves, and the stack pointer to *from; goes on at `to`.
extern "C" void torch_ext_switch_stack(void** from, void* to);
#endif

namespace torch_ext::cuda::host {

class Context {
 public:
  // The thread's own.
  Context() = default;

  // Will call entry(), which never returns, on a new stack. An overflow of it is a SIGSEGV.
  explicit Context(void (*entry)()) {
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<unsigned char*>(memory);
    mprotect(memory_, kGuardBytes, PROT_NONE);
    bottom_ = memory_ + kGuardBytes;
    size_ = kStackBytes;
#ifdef __x86_64__
    // What torch_ext_switch_stack takes from a stack: six registers and an address.
    void** top = reinterpret_cast<void**>(memory_ + kGuardBytes + kStackBytes) - 2;
    *top = reinterpret_cast<void*>(entry);
    stack_pointer_ = top - 6;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = memory_ + kGuardBytes;
    context_.uc_stack.ss_size = kStackBytes;
    makecontext(&context_, entry, 0);
#endif
  }

  Context(const Context&) = delete;

  ~Context() {
    if (memory_ == nullptr) return;
#ifdef TORCH_EXT_HAVE_ASAN
    // Calls that never returned have left their marks.
    __asan_unpoison_memory_region(bottom_, size_);
#endif
    munmap(memory_, kGuardBytes + kStackBytes);
  }

  // Suspends this, the running one, and goes on with `to`.
  void switch_to(Context& to) {
#ifdef TORCH_EXT_HAVE_ASAN
    to.previous_ = this;
    __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
#endif
#ifdef __x86_64__
    torch_ext_switch_stack(&stack_pointer_, to.stack_pointer_);
#else
    swapcontext(&context_, &to.context_);
#endif
    arrive();
  }

  // What entry() does first.
  void arrive() {
#ifdef TORCH_EXT_HAVE_ASAN
    __sanitizer_finish_switch_fiber(fake_stack_, &previous_->bottom_, &previous_->size_);
#endif
  }

 private:
  static constexpr size_t kStackBytes = 256 * 1024, kGuardBytes = 64 * 1024;

  unsigned char* memory_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
#ifdef TORCH_EXT_HAVE_ASAN
  void* fake_stack_ = nullptr;
  Context* previous_ = nullptr;
#endif
};

}  // namespace torch_ext::cuda::host
