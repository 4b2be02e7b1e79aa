// Which tasks there are, in which order, and what each of them reads of the other side.
//
// A task owns a tile of rows of one side, queries or keys, of one head (or group of heads), and
// walks over the tiles of the other side that its rows see. Blocks stay: block b of B takes tasks
// b, B + B - 1 - b, 2 B + b … Back and forth, so that where tasks become shorter and shorter (those
// that a causal limit lets see most come first) all blocks have about the same to do. Heads advance
// within a few at a time whose other side stays in the L2 cache.
#pragma once

#include <cstdint>

#include "attention/problem.h"
#include "cuda/primitives/thread.h"

namespace torch_ext::cuda::hopper {

struct Schedule {
  int heads;
  int heads_at_once;
  int tiles;           // of a head
  bool is_descending;  // the last tile first

  TORCH_EXT_INLINE int64_t tasks() const { return int64_t{heads} * tiles; }  // at most kMaxTasks
};

struct Task {
  int head, tile;
};

// Task t = 0 … tasks() - 1.
TORCH_EXT_INLINE Task find_task(const Schedule& schedule, int t) {
  const int per_section = schedule.heads_at_once * schedule.tiles;
  const int first_head = t / per_section * schedule.heads_at_once;
  const int left = schedule.heads - first_head;
  const int heads = left < schedule.heads_at_once ? left : schedule.heads_at_once;
  const int rest = t % per_section, tile = rest / heads;
  return {first_head + rest % heads, schedule.is_descending ? schedule.tiles - 1 - tile : tile};
}

// The task of a block in its round 0, 1, 2 …; none if not below tasks().
TORCH_EXT_INLINE int64_t task_of_round(int64_t round, int64_t block, int64_t blocks) {
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

// visit(task) for every task of this block.
template <class Visit>
TORCH_EXT_DEVICE void for_each_task(const Schedule& schedule, const Visit& visit) {
  for (int64_t round = 0;; ++round) {
    const int64_t t = task_of_round(round, block_index(), block_count());
    if (t >= schedule.tasks()) return;
    visit(find_task(schedule, static_cast<int>(t)));
  }
}

struct Range {
  int begin, end;
};

// What rows of the own side see of the other, in numbers small enough for 32-bit sums: position j
// with 0 <= j < other_length is visible to row i iff i + low <= j < i + high.
struct Visibility {
  int own_length, other_length;  // at most kMaxLength
  int low, high;                 // within +-kMaxLength

  TORCH_EXT_INLINE int clamp(int j) const {
    return j < 0 ? 0 : j > other_length ? other_length : j;
  }
  // What is visible to some of the rows first … last, and what is to all of them.
  TORCH_EXT_INLINE Range to_any(int first, int last) const {
    return {clamp(first + low), clamp(last + high)};
  }
  TORCH_EXT_INLINE Range to_all(int first, int last) const {
    return {clamp(last + low), clamp(first + high)};
  }
  // The same seen from the other side.
  TORCH_EXT_INLINE Visibility transposed() const {
    return {other_length, own_length, 1 - high, 1 - low};
  }
};

// Tiles of kOther positions that a tile of kOwn rows reads: begin <= tile < end.
template <int kOwn, int kOther>
TORCH_EXT_DEVICE Range visible_tiles(const Visibility& visibility, int own_tile) {
  const int first = own_tile * kOwn, end = first + kOwn, length = visibility.own_length;
  const Range seen = visibility.to_any(first, (end < length ? end : length) - 1);
  if (seen.begin >= seen.end) return {0, 0};
  return {seen.begin / kOther, (seen.end - 1) / kOther + 1};
}

}  // namespace torch_ext::cuda::hopper
