// How a problem is cut into pieces, and which path takes it: all numbers that decide it, and the
// one function that applies them.
//
// They do not depend on the caches found at run time: pieces decide the order of sums, and bits
// would differ between machines of the same ISA level. They fit the smallest caches in use, 32 KiB
// of level 1 and 256 KiB of level 2; `make tune` tries others, and draws what they change.
//
// Everything is declared here and defined in choices.cpp, compiled for any processor.
#pragma once

#include <cstdint>

namespace torch_ext::cpu {

struct Choices {
  // Queries of a tile, less where a head's tiles are more even then: a panel of registers wide for
  // float with AVX-512, a few panels elsewhere.
  int64_t tile_queries = 64;
  // Keys of a tile: whole blocks of registers, of 6, 8 or 12 rows each, and the scores of a tile in
  // float, 64 x 96, stay in the level-1 cache.
  int64_t tile_keys = 96;
  // Tiles of queries that share what a task of the forward reads of key and value, at most: their
  // queries and outputs stay in the level-2 cache. No sum depends on it.
  int64_t task_tiles = 4;

  // Keys of a task of the gradients, about: a chunk less is a partial gradient of the queries less
  // to write and to add up, a chunk more is work for another thread.
  int64_t chunk_keys = 384;
  // Rows of a chunk, about, where there are too few keys to cut: queries of one head, or of several
  // that read the same keys. Short, since a task takes several where there are heads enough.
  int64_t chunk_queries = 64;
  // Chunks of a key head at most: no more partial gradients are held.
  int64_t most_chunks = 8;
  // Keys up to which a task of the second order keeps the tiles of whole rows from its first sweep
  // for its second one, 1 KiB of float for each key: they stay in the level-3 cache.
  int64_t kept_keys = 2048;
  // MiB of partial sums of the heads computed at the same time, unless a single head needs more.
  int64_t partial_mib = 32;
  // Entries of a full bias gradient that a task may keep to itself, 256 KiB in float; a larger one
  // is summed where it is stored, and heads that share it take turns.
  int64_t private_slice = 65536;

  // Up to so many queries, lanes lie along the columns of keys and values (few_queries.h); up to
  // three fifths of it where tiles would multiply pairs of bfloat16: few queries are widened.
  int64_t few_queries = 10;
  // Up to so many keys, queries are read as they lie: to transpose them takes longer than to sum up
  // the lanes of so few products.
  int64_t few_keys = 4;
  // Rows of a task of few queries, unless a single head has more: they share what is read of key
  // and value, but with more of them there are fewer tasks.
  int64_t task_rows = 16;
  // Keys of a tile of rows: they, then their values, stay in the level-2 cache.
  int64_t row_keys = 256;
  // Numbers of key and value that a task reads, about: enough to be worth a task, and chunks enough
  // for many threads.
  int64_t row_chunk_numbers = 65536;
  // Chunks of a head at most; of very many keys each has more.
  int64_t most_row_chunks = 64;
  // Multiply-adds of one matrix product, all heads together, up to which one thread does the whole
  // problem: to wake others takes longer.
  int64_t one_thread = 16384;
  // What a head counts as beside its own multiply-adds, however few they are.
  int64_t head_cost = 1024;
  // MiB of the gradients of key and value from which on few queries write them past the caches:
  // lines that would leave them again need not be read before they are written.
  int64_t stream_mib = 16;
};

// The defaults, or what TORCH_EXT_CHOICES ("tile_keys=48,few_queries=4", for benchmarks/tune.py)
// makes of them. Decided once. Throws std::runtime_error as parse_choices does.
const Choices& choices();

// The defaults with the numbers of a list "name=number,…" in place.
// Throws std::runtime_error for an unknown name or a number that its user cannot work with.
Choices parse_choices(const char* list);

// Of a problem: N, M, D, E, query heads for each key head, numbers in a vector of sums.
struct Sizes {
  int64_t queries, keys, head_size, value_head_size, group, lanes;
  // Products that one multiply-add of tiles adds to a sum: 2 for pairs of bfloat16.
  int64_t terms = 1;
  bool keeps_rows = false;  // whether a task of the gradients keeps the tiles of whole rows
};

// `count` chunks of whole tiles, as even as can be: the first `longest` of `size`, the others a
// tile less, and what the last tile lacks. Long ones come first, for the balance of threads that
// take one after the other. An empty length is one empty chunk.
struct Chunks {
  int64_t size, count, longest, tile;

  // Where chunk `i` begins, or chunk i - 1 ends, unless the length ends before.
  int64_t begin(int64_t i) const;
};

// How a problem is cut. Depends on its sizes alone, not on threads or the number of key heads.
struct Cut {
  bool few_queries;      // the path of few_queries.h
  bool few_keys;         // one tile of keys, whose scores are products of rows
  int64_t tile_queries;  // of a tile, less at the end of a head
  int64_t tile_width;    // queries of the widest tile in whole vectors
  int64_t tile_keys;     // of a tile, less where there are fewer
  int64_t task_tiles;    // tiles of queries in a task of the forward
  Chunks key_chunks;     // of the gradients, of whole tiles
  Chunks query_chunks;   // likewise; one where keys are cut
  Chunks head_chunks;    // of the query heads that read the same keys; one where keys are cut
  // The rest is 0 without few queries.
  int64_t row_keys;   // of a tile of few queries
  int64_t row_heads;  // query heads in a task of the forward of few queries
  Chunks row_chunks;  // keys in a task of few queries, of whole tiles
};
// Of few queries or few keys: with a head narrower than a quarter of a vector lanes would be empty
// either way, and tiles add up the products of a score with fewer roundings.
bool has_few_queries(const Sizes& sizes, const Choices& numbers);
// Whether the second order can keep the tiles of whole rows.
bool can_keep_rows(const Sizes& sizes, const Choices& numbers);
Cut choose(const Sizes& sizes, const Choices& numbers);
Cut choose(const Sizes& sizes);  // with choices()

// How many threads at most are worth waking for a problem of so many heads.
int64_t most_threads(int64_t heads, const Sizes& sizes, const Choices& numbers);

// Whether results of `bytes` are written past the caches.
bool streams_results(int64_t bytes);

// How many of `heads` are computed at the same time when each leaves partial sums of `bytes`; about
// as many each time.
int64_t heads_at_once(int64_t heads, int64_t bytes);

}  // namespace torch_ext::cpu
