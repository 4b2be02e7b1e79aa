// Tile sizes, the tasks that tiles of queries are, and the memory of one thread. Sizes depend on
// the problem alone, never on the number of threads: they fix the order of every sum.
#pragma once

#include "cpu/kernels/pairs.h"
#include "cpu/parallel.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Queries of a tile: one panel of registers wide for float with AVX-512, a few panels elsewhere.
// The keys of a tile are a multiple of the rows of every register block (6 and 12), and the scores,
// 64 x 96, stay in the level-1 cache.
constexpr int64_t kTileQueries = 64;
constexpr int64_t kTileKeys = 96;

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

// Width of a problem's tiles, those with fewer queries included.
template <class T>
TORCH_EXT_INLINE int64_t tile_width(const Problem& p) {
  return round_up(smaller(p.query_length, kTileQueries), Vec<T>::kSize);
}

// Calls run(tile, scratch) for the tiles of queries of all heads, in parallel. Their keys are left
// to `run`. Under a causal limit the last tiles of a head take longest, so they go first.
template <class T, class Run>
TORCH_EXT_INLINE void for_each_query_tile(const Problem& p, int64_t scratch_bytes, const Run& run) {
  const int64_t tiles = divide_up(p.query_length, kTileQueries), width = tile_width<T>(p);
  parallel_tasks(p.query_heads() * tiles, scratch_bytes, [&](int64_t task, void* scratch) {
    const int64_t query = (tiles - 1 - task % tiles) * kTileQueries;
    const int64_t queries = smaller(kTileQueries, p.query_length - query);
    run(TileRange{task / tiles, query, queries, width, 0, 0}, scratch);
  });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
