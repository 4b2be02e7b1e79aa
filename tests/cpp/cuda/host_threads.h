// Runs a lambda as a kernel, in several orders of its threads.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/primitives/launch.h"

namespace torch_ext::cuda::test {

template <int kBlockThreads>
struct Lambda {
  static constexpr const char* kName = "lambda";
  static constexpr int kThreads = kBlockThreads, kBlocksPerProcessor = 1;
  struct Parameters {
    const std::function<void()>* body;
  };
  static TORCH_EXT_DEVICE void run(const Parameters& p) { (*p.body)(); }
};

// The lambda runs on kThreads threads of each block.
template <int kThreads = 64>
void run_threads(const std::function<void()>& body, int64_t shared_bytes = 0, int64_t blocks = 1) {
  launch<Lambda<kThreads>>({}, blocks, shared_bytes, {&body});
}

// What goes wrong in it; empty if nothing does.
template <int kThreads = 64>
std::string error_of(const std::function<void()>& body, int64_t shared_bytes = 0) {
  try {
    run_threads<kThreads>(body, shared_bytes);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

inline std::vector<host::Order> some_orders() {
  using host::Order;
  return {{Order::Forward, 0}, {Order::Backward, 0}, {Order::Shuffled, 1}, {Order::Shuffled, 2}};
}

// Calls body() once for each of some_orders().
template <class Body>
void in_some_orders(const Body& body) {
  for (const host::Order& order : some_orders()) {
    host::Device changed = host::device();
    changed.order = order;
    const host::WithDevice with(changed);
    body();
  }
}

// Threads exchange numbers through shared memory; returns how many read the right one.
template <class Barrier>
int right_after_exchange(int distance, const Barrier& barrier) {
  int right = 0;
  run_threads(
      [&] {
        int* shared = reinterpret_cast<int*>(shared_memory());
        shared[thread_index()] = thread_index();
        barrier();
        right += shared[thread_index() ^ distance] == (thread_index() ^ distance);
      },
      64 * sizeof(int));
  return right;
}

inline testing::AssertionResult has(const std::string& text,
                                    std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    if (text.find(part) == std::string::npos) {
      return testing::AssertionFailure() << "'" << part << "' is not in '" << text << "'";
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace torch_ext::cuda::test
