// Which thread of a block goes on next.
#pragma once

#include <bit>
#include <cstdint>
#include <numeric>

#include "cuda/primitives/fibers.h"

namespace torch_ext::cuda::host {

class Schedule {
 public:
  static constexpr int kWarpSize = 32, kMaxWarps = 32;

  Schedule() = default;
  // Every launch with the same order is the same.
  Schedule(const Order& order, int64_t blocks, int threads)
      : kind_(order.kind), random_state_(order.seed), blocks_(blocks), warps_(threads / kWarpSize) {
    const bool backward = kind_ == Order::Backward;
    block_ = backward ? blocks - 1 : 0;
    step_ = backward ? blocks - 1 : 1;
    if (kind_ != Order::Shuffled) return;
    block_ = random(blocks);
    do {
      step_ = 1 + random(blocks);
    } while (std::gcd(step_, blocks) != 1);
  }

  // The next of the blocks: equal steps modulo their number, prime to it, leave none out.
  int64_t next_block() {
    const int64_t block = block_;
    block_ = (block_ + step_) % blocks_;
    return block;
  }

  void wake_block() {
    for (int warp = 0; warp < warps_; ++warp) wake_warp(warp);
  }
  void wake_warp(int warp) {
    lanes_[warp] = ~0u;
    warps_ready_ |= 1u << warp;
  }
  void wake(int thread) {
    lanes_[thread / kWarpSize] |= 1u << thread % kWarpSize;
    warps_ready_ |= 1u << thread / kWarpSize;
  }
  void sleep(int thread) {
    const int warp = thread / kWarpSize;
    lanes_[warp] &= ~(1u << thread % kWarpSize);
    if (lanes_[warp] == 0) warps_ready_ &= ~(1u << warp);
  }

  bool can_go_on(int thread) const { return lanes_[thread / kWarpSize] >> thread % kWarpSize & 1; }
  bool is_stuck() const { return warps_ready_ == 0; }

  int next_thread() {
    const int warp = choose(warps_ready_);
    return warp * kWarpSize + choose(lanes_[warp]);
  }

 private:
  // One of the bits that are set.
  int choose(uint32_t bits) {
    if (kind_ == Order::Forward) return std::countr_zero(bits);
    if (kind_ == Order::Backward) return 31 - std::countl_zero(bits);
    const int start = static_cast<int>(random(32));
    return (start + std::countr_zero(std::rotr(bits, start))) % 32;
  }

  // A number in [0, n): splitmix64.
  int64_t random(int64_t n) {
    uint64_t x = random_state_ += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return static_cast<int64_t>((x ^ x >> 31) % static_cast<uint64_t>(n));
  }

  Order::Kind kind_ = Order::Forward;
  uint64_t random_state_ = 0;
  int64_t blocks_ = 0, block_ = 0, step_ = 0;
  int warps_ = 0;
  // Bit sets of the threads that can go on: the lanes of each warp, and the warps that have any.
  uint32_t lanes_[kMaxWarps] = {}, warps_ready_ = 0;
};

}  // namespace torch_ext::cuda::host
