// csrc/cuda/primitives/hopper_matrix.h on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cuda/primitives/hopper_barrier.h"
#include "cuda/primitives/hopper_descriptor.h"
#include "cuda/primitives/numbers.h"

namespace torch_ext::cuda {

namespace host {

// Sanitizers have nothing to find where this stands, and would make it several times slower.
#define TORCH_EXT_UNSANITIZED __attribute__((no_sanitize("address", "undefined")))

inline Warpgroup& warpgroup() {
  return hopper_block().warpgroups[running.thread->index / kWarpgroupSize];
}
inline ProductThread& product_thread() {
  return warpgroup().threads[running.thread->index % kWarpgroupSize];
}

// Element (i, k) of an operand with rows i = 0 … 63 or 0 … N - 1 and the sum over k = 0 … 15, as
// the instruction finds it by the descriptor's fields.
TORCH_EXT_UNSANITIZED inline uint16_t element(uint64_t descriptor, bool transposed, uint32_t i,
                                              uint32_t k) {
  const auto field = [descriptor](int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3fff) * 16;
  };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  uint32_t address = start;
  if (transposed) {
    address += i % 64 * 2 + i / 64 * leading + k % 8 * 128 + k / 8 * stride;
  } else {
    address += i % 8 * 128 + i / 8 * stride + k * 2;
  }
  address ^= (address >> 7 & 7) << 4;
  if (address < kSharedBase || address + 2 > kSharedBase + running.shared_bytes) {
    throw std::runtime_error("multiply_add: an operand lies outside shared memory");
  }
  uint16_t x;
  std::memcpy(&x, running.shared + (address - kSharedBase), 2);
  return x;
}

// b (16 x columns): row k of the sum.
TORCH_EXT_UNSANITIZED inline void add_row(float* sums, float a, const float* b, int columns) {
  for (int j = 0; j < columns; ++j) sums[j] += a * b[j];
}

// Adds A B to the accumulators that are on their way.
inline void execute(Warpgroup& group, int64_t index) {
  const Product& p = group.products[static_cast<size_t>(index)];
  const int columns = 2 * p.count;
  std::vector<float> b(16 * static_cast<size_t>(columns)), sums(static_cast<size_t>(columns));
  for (int j = 0; j < columns; ++j) {
    for (int k = 0; k < 16; ++k) {
      b[k * columns + j] = p.decode(element(p.b, p.a_in_registers, j, k));
    }
  }
  for (int i = 0; i < 64; ++i) {
    // Row i % 16 of warp i / 16; row i % 8 is that of a quad.
    const int quad = i / 16 * 32 + i % 8 * 4, first = i % 16 / 8 * 2;
    const auto accumulator = [&](int j) -> float& {
      const int t = quad + j % 8 / 2;
      return group.threads[t].in_flight.at(p.c[t]).values[j / 8 * 4 + first + j % 2];
    };
    for (int j = 0; j < columns; ++j) sums[j] = p.accumulate ? accumulator(j) : 0;
    for (int k = 0; k < 16; ++k) {
      // Two columns in each register, those of k < 8 first.
      const uint32_t pair = p.a_values[quad + k % 8 / 2][i % 16 / 8 + k / 8 * 2];
      const auto half = static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16);
      const float a = p.decode(p.a_in_registers ? half : element(p.a, false, i, k));
      add_row(sums.data(), a, b.data() + k * columns, columns);
    }
    for (int j = 0; j < columns; ++j) accumulator(j) = sums[j];
  }
}

inline void execute_until(Warpgroup& group, int64_t end) {
  for (; group.executed < end; ++group.executed) execute(group, group.executed);
}

inline void issue(const Product& wanted, float* c, const uint32_t* a, const Location& where) {
  Warpgroup& group = warpgroup();
  ProductThread& self = product_thread();
  const int t = running.thread->index % kWarpgroupSize;
  if (!self.may_issue) fail("multiply_add", where, "begin_products() is missing");
  for (const uint64_t descriptor : {wanted.a, wanted.b}) {
    if (descriptor != 0 && descriptor >> 62 != 1) {
      fail("multiply_add", where, "an operand is not described as swizzled by 128 bytes");
    }
  }
  const auto index = static_cast<size_t>(self.issued++);
  if (index == group.products.size()) group.products.push_back(wanted);
  Product& product = group.products[index];
  if (product.a != wanted.a || product.b != wanted.b || product.count != wanted.count ||
      product.accumulate != wanted.accumulate || product.a_in_registers != wanted.a_in_registers) {
    fail("multiply_add", where, "the threads of the warpgroup disagree about the product");
  }
  product.c[t] = c;
  product.a_registers[t] = a;
  if (a != nullptr) std::memcpy(product.a_values[t], a, sizeof product.a_values[t]);
  const auto last = static_cast<int64_t>(index);
  const auto [entry, is_new] =
      self.in_flight.try_emplace(c, Accumulators{{c, c + product.count}, last});
  entry->second.last_product = last;
  if (is_new) std::memset(c, 0xff, static_cast<size_t>(product.count) * sizeof(float));
  if (++product.issued < kWarpgroupSize) return;
  if (device().products_early) execute_until(group, last + 1);
  notify();
}

// What registers of finished products hold. That nobody touched them meanwhile, too.
inline void finish(Warpgroup& group, ProductThread& self, int64_t end, const Location& where) {
  const int t = running.thread->index % kWarpgroupSize;
  for (; self.waited < end; ++self.waited) {
    const Product& p = group.products[static_cast<size_t>(self.waited)];
    if (p.a_in_registers &&
        std::memcmp(p.a_registers[t], p.a_values[t], sizeof p.a_values[t]) != 0) {
      fail("wait_for_products", where, "a left operand's registers changed before");
    }
  }
  std::erase_if(self.in_flight, [&](const auto& entry) {
    const auto& [c, accumulators] = entry;
    if (accumulators.last_product >= end) return false;
    for (size_t i = 0; i < accumulators.values.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, c + i, sizeof bits);
      if (bits != 0xffffffff) fail("wait_for_products", where, "accumulators changed before");
      c[i] = accumulators.values[i];
    }
    return true;
  });
}

inline void wait_for_products(int pending, float* c, const Location& where) {
  Warpgroup& group = warpgroup();
  ProductThread& self = product_thread();
  const auto groups = static_cast<int64_t>(self.groups.size());
  const int64_t end = groups > pending ? self.groups[static_cast<size_t>(groups - pending - 1)] : 0;
  while (end > 0 && group.products[static_cast<size_t>(end - 1)].issued < kWarpgroupSize) {
    pause("wait_for_products", where);
  }
  if (group.executed < end) pause_until_idle("wait_for_products", where);
  execute_until(group, end);
  finish(group, self, end, where);
  if (self.in_flight.contains(c)) {
    fail("wait_for_products", where, "the accumulators' products are not among those waited for");
  }
  self.may_issue = false;
}

}  // namespace host

TORCH_EXT_DEVICE void begin_products() { host::product_thread().may_issue = true; }
template <int kCount>
TORCH_EXT_DEVICE void clear_accumulators(float (&c)[kCount]) {
  std::fill_n(c, kCount, 0.0f);
}
TORCH_EXT_DEVICE void commit_products() {
  host::ProductThread& self = host::product_thread();
  self.groups.push_back(self.issued);
}
template <int kPending, int kCount>
TORCH_EXT_DEVICE void wait_for_products(float (&c)[kCount],
                                        host::Location where = host::Location::current()) {
  host::wait_for_products(kPending, c, where);
}

template <class E, int kCount>
TORCH_EXT_DEVICE void multiply_add(float (&c)[kCount], MatrixDescriptor a, MatrixDescriptor b,
                                   bool accumulate,
                                   host::Location where = host::Location::current()) {
  static_assert(kCount % 4 == 0 && kCount <= 128);
  host::Product product;
  product.a = a.bits;
  product.b = b.bits;
  product.accumulate = accumulate;
  product.count = kCount;
  product.decode = [](uint16_t x) { return to_float(E{x}); };
  host::issue(product, c, nullptr, where);
}
template <class E, int kCount>
TORCH_EXT_DEVICE void multiply_add(float (&c)[kCount], const uint32_t (&a)[4], MatrixDescriptor b,
                                   bool accumulate,
                                   host::Location where = host::Location::current()) {
  static_assert(kCount % 4 == 0 && kCount <= 128);
  host::Product product;
  product.b = b.bits;
  product.a_in_registers = true;
  product.accumulate = accumulate;
  product.count = kCount;
  product.decode = [](uint16_t x) { return to_float(E{x}); };
  host::issue(product, c, a, where);
}

}  // namespace torch_ext::cuda
