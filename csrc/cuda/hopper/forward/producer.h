// The thread of a block that brings tiles to shared memory.
#pragma once

#include "cuda/hopper/forward/parameters.h"
#include "cuda/hopper/forward/tiles.h"

namespace torch_ext::cuda::hopper {

// Where a head lies is worked out for every tile: registers to remember it are scarcer than time.
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
    for_each_task(p.schedule, [&](const Task& task) {
      const Range tiles = visible_tiles<Tiles::kQueries, Tiles::kKeys>(p.visibility, task.tile);
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
    copy_rows(shared.query, view_head(p.query, task.head), task.tile * Tiles::kQueries,
              Tiles::kBlocks, Tiles::kQueryBlockBytes, shared.query_full);
    query_parity ^= 1;
  }
  TORCH_EXT_DEVICE void copy_keys(int head, int tile) {
    wait(shared.key_free[key_at.stage()], key_at.parity() ^ 1);
    copy_rows(shared.key[key_at.stage()], view_head(p.key, head), tile * Tiles::kKeys,
              Tiles::kBlocks, Tiles::kKeyBlockBytes, shared.key_full[key_at.stage()]);
    ++key_at.count;
  }
  TORCH_EXT_DEVICE void copy_values(int head, int tile) {
    wait(shared.value_free[value_at.stage()], value_at.parity() ^ 1);
    copy_rows(shared.value[value_at.stage()], view_head(p.value, head), tile * Tiles::kKeys,
              Tiles::kBlocks, Tiles::kKeyBlockBytes, shared.value_full[value_at.stage()]);
    ++value_at.count;
  }
};

}  // namespace torch_ext::cuda::hopper
