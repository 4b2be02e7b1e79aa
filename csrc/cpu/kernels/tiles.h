// Tile sizes and the memory of one thread. Sizes depend on the problem alone, never on the number
// of threads: they fix the order of every sum.
#pragma once

#include "cpu/kernels/pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Queries of a tile: one panel of registers wide for float with AVX-512, a few panels elsewhere.
// The keys of a tile are a multiple of the rows of every register block (6 and 12), and the scores,
// 64 x 96, stay in the level-1 cache.
constexpr int64_t kTileQueries = 64;
constexpr int64_t kTileKeys = 96;

// Hands out 64-byte aligned pieces of a thread's scratch. Without a start it only counts bytes, so
// that the size is computed by the code that lays the pieces out.
class Scratch {
 public:
  explicit TORCH_EXT_INLINE Scratch(void* start) : start_(static_cast<char*>(start)) {}

  template <class T>
  TORCH_EXT_INLINE T* take(int64_t count) {
    char* piece = start_ ? start_ + used_ : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(piece);
  }
  TORCH_EXT_INLINE int64_t used() const { return used_; }

 private:
  char* start_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
