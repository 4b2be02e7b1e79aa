// Which tasks there are, in which order, and which keys each of them reads.
//
// A task is a tile of queries of one head. Blocks stay: block b of B takes tasks b, B + B - 1 - b,
// 2 B + b … Back and forth, so that where tasks become shorter and shorter (the last queries, which
// a causal limit lets see most, come first) all blocks have about the same to do. Heads advance
// within a few at a time whose keys and values stay in the L2 cache.
#pragma once

#include <cstdint>

#include "attention/problem.h"
#include "cuda/primitives/thread.h"

namespace torch_ext::cuda::hopper {

struct Schedule {
  int64_t heads;
  int64_t heads_at_once;
  int64_t query_tiles;

  TORCH_EXT_INLINE int64_t tasks() const { return heads * query_tiles; }
};

struct Task {
  int head, query_tile;
};

// Task t = 0 … tasks() - 1.
TORCH_EXT_INLINE Task find_task(const Schedule& schedule, int64_t t) {
  const int64_t per_section = schedule.heads_at_once * schedule.query_tiles;
  const int64_t first_head = t / per_section * schedule.heads_at_once;
  const int64_t left = schedule.heads - first_head;
  const int64_t heads = left < schedule.heads_at_once ? left : schedule.heads_at_once;
  const int64_t rest = t % per_section;
  return {static_cast<int>(first_head + rest % heads),
          static_cast<int>(schedule.query_tiles - 1 - rest / heads)};
}

// The task of a block in its round 0, 1, 2 …; none if not below tasks().
TORCH_EXT_INLINE int64_t task_of_round(int64_t round, int64_t block, int64_t blocks) {
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

struct KeyRange {
  int begin, end;
};

// Which keys a query sees, in numbers small enough for 32-bit sums: key j < key_length is visible
// to query i iff i + low <= j < i + high.
struct Visibility {
  int query_length, key_length;  // at most kMaxLength
  int low, high;                 // within +-kMaxLength

  TORCH_EXT_INLINE int clamp(int j) const { return j < 0 ? 0 : j > key_length ? key_length : j; }
  // Keys that are visible to some of the queries first … last, and those that are visible to all.
  TORCH_EXT_INLINE KeyRange to_any(int first, int last) const {
    return {clamp(first + low), clamp(last + high)};
  }
  TORCH_EXT_INLINE KeyRange to_all(int first, int last) const {
    return {clamp(last + low), clamp(first + high)};
  }
};

}  // namespace torch_ext::cuda::hopper
