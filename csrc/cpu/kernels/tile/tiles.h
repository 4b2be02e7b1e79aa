// Tiles, the tasks that tiles of queries are, and the memory of one thread. Their sizes are chosen
// in choices.h.
#pragma once

#include "cpu/choices.h"
#include "cpu/kernels/tile/pairs.h"
#include "cpu/parallel.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Queries [query, query + queries) against keys [key, key + keys) of one head. `width` is `queries`
// rounded up to whole vectors, and the stride of the tile.
struct TileRange {
  int64_t head;  // query head
  int64_t query, queries, width;
  int64_t key, keys;
};

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

template <class T>
TORCH_EXT_INLINE Sizes sizes_of(const Problem& p) {
  Sizes sizes{p.query_length, p.key_length, p.head_size, p.value_head_size, p.group, Vec<T>::kSize};
#ifdef __AVX512BF16__
  if (p.query.dtype == DType::BFloat16) sizes.terms = 2;
#endif
  return sizes;
}

// See choices.h; sums of any type have the same limit.
TORCH_EXT_INLINE int64_t most_threads(const Problem& p) {
  return cpu::most_threads(p.query_heads(), sizes_of<float>(p), choices());
}

// Whether a task of the gradients keeps the tiles of whole rows: that of the second order may.
template <class T>
TORCH_EXT_INLINE bool can_keep_rows(const SecondOrderProblem& p) {
  return cpu::can_keep_rows(sizes_of<T>(p), choices());
}
template <class T>
TORCH_EXT_INLINE bool can_keep_rows(const BackwardProblem&) {
  return false;
}

// How the problem is cut whose sums are of type T.
template <class T>
TORCH_EXT_INLINE Cut cut_of(const Problem& p, bool keeps_rows = false) {
  Sizes sizes = sizes_of<T>(p);
  sizes.keeps_rows = keeps_rows;
  return choose(sizes);
}

// Calls run(block, scratch) for blocks of `tiles` tiles of queries of all heads, in parallel. Their
// keys are left to `run`. Under a causal limit the last blocks of a head take longest, so they go
// first.
template <class Run>
TORCH_EXT_INLINE void for_each_query_block(const Problem& p, const Cut& cut, int64_t tiles,
                                           int64_t scratch_bytes, const Run& run) {
  const int64_t size = tiles * cut.tile_queries, blocks = divide_up(p.query_length, size);
  const auto block_task = [&](int64_t task, void* scratch) {
    const int64_t query = (blocks - 1 - task % blocks) * size;
    const int64_t queries = smaller(size, p.query_length - query);
    run(TileRange{task / blocks, query, queries, cut.tile_width, 0, 0}, scratch);
  };
  parallel_tasks(p.query_heads() * blocks, scratch_bytes, block_task, most_threads(p));
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
