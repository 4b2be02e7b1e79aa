// Attention of few queries, as in decoding: time goes into reading keys and values once, so lanes
// lie along their columns and nothing is packed (row_products.h). With a query in each lane, as in
// the tiles of many queries, most lanes would be empty.
//
// Rows are the queries of the heads that share a key head. A tile of scores lies (rows, keys), keys
// along the lanes.
#pragma once

#include "cpu/kernels/row_products.h"
#include "cpu/kernels/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Up to how many queries this is faster than tiles of queries. The two break even between 8 and 16,
// where half of the lanes of a tile of queries are in use, for any D, M and group.
constexpr int64_t kFewQueries = 8;
// Rows of a task, unless a single head has more.
constexpr int64_t kFewRows = 16;
// Keys of a tile: together with their values they stay in the level-2 cache.
constexpr int64_t kFewKeys = 128;
// Numbers that a task reads, about: enough to be worth a task, and chunks enough for many threads.
constexpr int64_t kFewChunkNumbers = 1 << 16;
// Chunks of a head at most; of very many keys each has more.
constexpr int64_t kMostFewChunks = 64;

TORCH_EXT_INLINE bool has_few_queries(const Problem& p) {
  return p.query_length > 0 && p.query_length <= kFewQueries;
}

// How the keys of a head are cut into tasks, whose partial sums are merged in their order.
struct FewChunks {
  int64_t size, count;

  explicit TORCH_EXT_INLINE FewChunks(const Problem& p) {
    const int64_t keys = larger(1, p.key_length);
    const int64_t wanted =
        larger(kFewKeys, kFewChunkNumbers / larger(1, p.head_size + p.value_head_size));
    const int64_t pieces = smaller(kMostFewChunks, divide_up(keys, wanted));
    size = round_up(divide_up(keys, pieces), kFewKeys);
    count = divide_up(keys, size);
  }
};

// The same scores with queries and keys in each other's place: tiles of it lie (queries, keys).
TORCH_EXT_INLINE Problem transposed(const Problem& p) {
  Problem t = p;
  t.query_length = p.key_length;
  t.key_length = p.query_length;
  t.left = p.right;
  t.right = p.left;
  t.offset = -p.offset;
  t.mask.row_stride = p.mask.col_stride;
  t.mask.col_stride = p.mask.row_stride;
  t.bias.row_stride = p.bias.col_stride;
  t.bias.col_stride = p.bias.row_stride;
  return t;
}

// Keys in whole vectors and in whole blocks of row_products.
TORCH_EXT_INLINE int64_t row_width(int64_t keys) { return round_up(keys, 16); }

// A tile of rows: all queries of query heads [head, head + heads), which read the same keys.
struct RowTile {
  int64_t head, heads;
  int64_t key, keys;
  int64_t width;  // row_width(keys): the stride of the tile
};

// What is added to the scores of a tile (rows, width); see additive_tile.
template <class T>
Visibility additive_rows(const Problem& transposed, const RowTile& t, T* additive, T* spare) {
  const int64_t queries = transposed.key_length;
  Visibility seen = Visibility::kNone;
  for (int64_t h = 0; h < t.heads; ++h) {
    const TileRange tile{t.head + h, t.key, t.keys, t.width, 0, queries};
    const Visibility one =
        additive_tile<T>(transposed, tile, additive + h * queries * t.width, spare);
    if (one == Visibility::kAll) return one;  // nothing is ever added: the same for every head
    if (one == Visibility::kSome) seen = one;
  }
  return seen;
}

}  // namespace

void few_queries_forward(const ForwardProblem&);

}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
