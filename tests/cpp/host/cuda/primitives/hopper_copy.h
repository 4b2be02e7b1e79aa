// csrc/cuda/primitives/hopper_copy.h on the host.
#pragma once

#include <stdexcept>

#include "cuda/primitives/hopper_barrier.h"
#include "cuda/primitives/hopper_descriptor.h"
#include "cuda/primitives/hopper_tensor.h"
#include "cuda/primitives/launch.h"

namespace torch_ext::cuda {

struct TensorMap {
  TensorLayout tensor;
  int rows;
};

// The device is one if its blocks may have Hopper's shared memory.
inline bool is_hopper(const Stream& stream) { return shared_memory_limit(stream) >= 227 * 1024; }

// Refuses what the driver would.
template <class E>
TensorMap make_tensor_map(const TensorLayout& tensor, int rows) {
  static_assert(sizeof(E) == 2);
  bool is_valid = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0 && rows >= 1 && rows <= 256;
  for (int d = 0; d < kTensorDims; ++d) {
    is_valid &= tensor.sizes[d] >= 1 && tensor.sizes[d] <= int64_t{1} << 32;
    const int64_t bytes = tensor.strides[d] * 2;
    if (d > 0) is_valid &= bytes > 0 && bytes % 16 == 0 && bytes < int64_t{1} << 40;
  }
  if (!is_valid) throw std::runtime_error("torch_ext: make_tensor_map: invalid argument");
  return {tensor, rows};
}

TORCH_EXT_DEVICE void prefetch(const TensorMap&) {}

namespace host {

struct TileOrigin {
  int at[kTensorDims];
};

inline void copy_tile(unsigned char* shared, const TensorMap& map, const TileOrigin& origin) {
  const TensorLayout& tensor = map.tensor;
  for (int r = 0; r < map.rows; ++r) {
    for (int c = 0; c < kBlockColumns; ++c) {
      const int64_t index[kTensorDims] = {origin.at[0] + c, origin.at[1] + r, origin.at[2],
                                          origin.at[3], origin.at[4]};
      uint16_t element = 0;
      int64_t offset = 0;
      bool is_inside = true;
      for (int d = 0; d < kTensorDims; ++d) {
        is_inside &= index[d] >= 0 && index[d] < tensor.sizes[d];
        offset += index[d] * (d == 0 ? 1 : tensor.strides[d]);
      }
      if (is_inside) std::memcpy(&element, static_cast<const uint16_t*>(tensor.data) + offset, 2);
      // Bits 4 … 6 of the address are exchanged by bits 7 … 9.
      uint32_t address = static_cast<uint32_t>(shared - running.shared) + r * 128u + c * 2u;
      address ^= (address >> 7 & 7) << 4;
      std::memcpy(running.shared + address, &element, 2);
    }
  }
}

// Now or later; then `bytes` have come for the barrier.
inline void start_copy(SharedBarrier& barrier, int bytes, const char* name, const Location& where,
                       const std::function<void()>& copy) {
  const auto perform = [&barrier, bytes, name, where, copy] {
    copy();
    BarrierState state = load(barrier, name, where);
    state.bytes -= bytes;
    store(barrier, state);
  };
  if (device().copies_early) return perform();
  hopper_block().copies.push_back({&barrier, perform});
  notify();
}

}  // namespace host

TORCH_EXT_DEVICE void copy_tile(void* shared, const TensorMap& tensor, const int (&at)[kTensorDims],
                                SharedBarrier& barrier,
                                host::Location where = host::Location::current()) {
  const int bytes = tensor.rows * kBlockRowBytes;
  host::check_shared(shared, bytes, "copy_tile", where);
  auto* const target = static_cast<unsigned char*>(shared);
  if ((target - host::running.shared) % kSwizzleBytes != 0) {
    host::fail("copy_tile", where, "the shared address is not a multiple of 1024");
  }
  host::TileOrigin origin;
  std::memcpy(origin.at, at, sizeof at);
  host::start_copy(barrier, bytes, "copy_tile", where,
                   [target, &tensor, origin] { host::copy_tile(target, tensor, origin); });
}

TORCH_EXT_DEVICE void copy_bytes(void* shared, const void* global, int bytes,
                                 SharedBarrier& barrier,
                                 host::Location where = host::Location::current()) {
  host::check_shared(shared, bytes, "copy_bytes", where);
  const auto is_aligned = [](const void* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; };
  if (!is_aligned(shared) || !is_aligned(global) || bytes % 16 != 0 || bytes <= 0) {
    host::fail("copy_bytes", where, "an address or the length is not a multiple of 16");
  }
  host::start_copy(barrier, bytes, "copy_bytes", where,
                   [=] { std::memcpy(shared, global, static_cast<size_t>(bytes)); });
}

}  // namespace torch_ext::cuda
