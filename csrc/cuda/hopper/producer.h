// The thread of a block that brings tiles to shared memory.
#pragma once

#include "cuda/hopper/parameters.h"
#include "cuda/hopper/tiles.h"

namespace torch_ext::cuda::hopper {

// Tiles of keys that a tile of queries reads: begin <= tile < end, the same for all warpgroups.
template <class Tiles>
TORCH_EXT_DEVICE KeyRange tiles_of(const ForwardParameters& p, int query_tile) {
  const int first = query_tile * Tiles::kQueries, end = first + Tiles::kQueries;
  const int length = p.visibility.query_length;
  const KeyRange keys = p.visibility.to_any(first, (end < length ? end : length) - 1);
  if (keys.begin >= keys.end) return {0, 0};
  return {keys.begin / Tiles::kKeys, (keys.end - 1) / Tiles::kKeys + 1};
}

// visit(task, round) for every task of this block.
template <class Visit>
TORCH_EXT_DEVICE void for_each_task(const ForwardParameters& p, const Visit& visit) {
  for (int round = 0;; ++round) {
    const int64_t t = task_of_round(round, block_index(), block_count());
    if (t >= p.schedule.tasks()) return;
    visit(find_task(p.schedule, t), round);
  }
}

template <class Tiles>
struct ForwardProducer {
  const ForwardParameters& p;
  typename Tiles::Shared& shared;
  RingPosition<Tiles::kStages> key_at{}, value_at{};
  int query_parity = 0;

  // Each task's first tile of keys does not wait for the task before it to be done with its
  // queries.
  TORCH_EXT_DEVICE void run() {
    prefetch(p.query.map);
    prefetch(p.key.map);
    prefetch(p.value.map);
    for_each_task(p, [&](const Task& task, int) {
      const KeyRange tiles = tiles_of<Tiles>(p, task.query_tile);
      if (tiles.begin == tiles.end) return;
      int tile = tiles.end - 1;
      copy_keys(task.head, tile);
      copy_queries(task);
      for (; tile > tiles.begin; --tile) {
        copy_keys(task.head, tile - 1);
        copy_values(task.head, tile);
      }
      copy_values(task.head, tile);
    });
  }

  TORCH_EXT_DEVICE void copy_queries(const Task& task) {
    wait(shared.query_free, query_parity ^ 1);
    copy_rows(shared.query, p.query, task.head, task.query_tile * Tiles::kQueries, Tiles::kBlocks,
              Tiles::kQueryBlockBytes, shared.query_full);
    query_parity ^= 1;
  }
  TORCH_EXT_DEVICE void copy_keys(int head, int tile) {
    wait(shared.key_free[key_at.stage()], key_at.parity() ^ 1);
    copy_rows(shared.key[key_at.stage()], p.key, head, tile * Tiles::kKeys, Tiles::kBlocks,
              Tiles::kKeyBlockBytes, shared.key_full[key_at.stage()]);
    ++key_at.count;
  }
  TORCH_EXT_DEVICE void copy_values(int head, int tile) {
    wait(shared.value_free[value_at.stage()], value_at.parity() ^ 1);
    copy_rows(shared.value[value_at.stage()], p.value, head, tile * Tiles::kKeys, Tiles::kBlocks,
              Tiles::kKeyBlockBytes, shared.value_full[value_at.stage()]);
    ++value_at.count;
  }
};

}  // namespace torch_ext::cuda::hopper
