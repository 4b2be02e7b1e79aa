// What a block has on Hopper beside its threads and its shared memory: copies and matrix products
// that are under way, and named barriers.
//
// Device::copies_early and products_early say when they happen. Early: as soon as they are asked
// for. Late (the default): when somebody waits for them and no thread can do anything else. What
// is asked for too early, read too early or overwritten too early then gives a wrong result.
#pragma once

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "cuda/primitives/thread.h"

namespace torch_ext::cuda::host {

constexpr int kWarpgroupSize = 128;
constexpr uint32_t kSharedBase = 1024;  // the address of shared memory's first byte, by hardware

struct NamedBarrier {
  int arrived = 0, threads = 0;
  int64_t rounds = 0;
};

// A tile that is to be copied when `barrier` is waited for.
struct TileCopy {
  const void* barrier;
  std::function<void()> perform;
};

// One matrix instruction of a warpgroup, as far as its threads have come to it.
struct Product {
  uint64_t a = 0, b = 0;  // descriptors
  bool a_in_registers = false, accumulate = false;
  int count = 0;  // accumulators of a thread
  float (*decode)(uint16_t) = nullptr;
  int issued = 0;
  float* c[kWarpgroupSize] = {};
  const uint32_t* a_registers[kWarpgroupSize] = {};
  uint32_t a_values[kWarpgroupSize][4] = {};  // when it was issued
};

// Accumulators whose values are on their way; the registers hold NaN until then.
struct Accumulators {
  std::vector<float> values;
  int64_t last_product;
};

struct ProductThread {
  int64_t issued = 0, waited = 0;  // products
  std::vector<int64_t> groups;     // products issued when each was committed
  bool may_issue = false;          // begin_products() since the last wait
  std::map<float*, Accumulators> in_flight;
};

struct Warpgroup {
  std::deque<Product> products;  // since the block began
  int64_t executed = 0;
  ProductThread threads[kWarpgroupSize];
};

struct HopperBlock {
  NamedBarrier named[16];
  std::deque<TileCopy> copies;
  std::map<int, Warpgroup> warpgroups;
};

inline HopperBlock& hopper_block() {
  std::shared_ptr<void>& block = *running.hopper;
  if (block == nullptr) block = std::make_shared<HopperBlock>();
  return *static_cast<HopperBlock*>(block.get());
}

}  // namespace torch_ext::cuda::host
