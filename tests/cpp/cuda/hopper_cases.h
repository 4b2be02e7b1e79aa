// What the tests of the Hopper kernels have in common.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "compare.h"
#include "cuda/primitives/hopper_copy.h"

namespace torch_ext::test {

constexpr DType kDTypes[] = {DType::BFloat16, DType::Float16};

inline Options options_for(int64_t head_size, DType dtype) {
  Options o;
  o.dtype = dtype;
  o.scale = 1 / std::sqrt(static_cast<double>(head_size));
  return o;
}

// One query that sees all of 40 keys but the first or the last, which are `bad`.
inline Case case_with_one_hidden_key(bool is_first, double bad) {
  Options o = options_for(64, DType::BFloat16);
  (is_first ? o.left : o.right) = 38;
  o.bottom_right = is_first;
  Case c({1, 1, 1, 1, 40, 64, 64}, o);
  c.value.set(0, 0, is_first ? 0 : 39, 7, bad);
  c.key.set(0, 0, is_first ? 0 : 39, 7, bad);
  return c;
}

inline cuda::host::Device hopper_device() {
  cuda::host::Device device = cuda::host::device();
  device.shared_memory_limit = 227 * 1024;
  return device;
}

// With one processor, so that rings and barriers go on from task to task: what is asynchronous
// happens early or late, threads run in some order.
inline std::vector<cuda::host::Device> devices_in_any_order() {
  using cuda::host::Order;
  std::vector<cuda::host::Device> devices;
  for (const bool copies_early : {false, true}) {
    for (const bool products_early : {false, true}) {
      for (const Order& order :
           {Order{Order::Forward, 0}, Order{Order::Backward, 0}, Order{Order::Shuffled, 1}}) {
        cuda::host::Device device = hopper_device();
        device.processors = 1;
        device.copies_early = copies_early;
        device.products_early = products_early;
        device.order = order;
        devices.push_back(device);
      }
    }
  }
  return devices;
}
inline std::string describe(const cuda::host::Device& device) {
  return std::string(device.copies_early ? ", copies early" : "") +
         (device.products_early ? ", products early" : "") + ", order " +
         std::to_string(device.order.kind);
}

}  // namespace torch_ext::test
