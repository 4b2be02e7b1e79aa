// The thread of a block of the backward that brings tiles to shared memory.
#pragma once

#include "cuda/hopper/backward/tiles.h"

namespace torch_ext::cuda::hopper {

template <class Tiles>
struct BackwardProducer {
  const BackwardParameters& p;
  typename Tiles::Shared& shared;
  RingPosition<Tiles::kStages> x_at{};
  RingPosition<Tiles::kStagesOfY> y_at{};
  int own_parity = 0;

  // Each task's first tile of the other side's x does not wait for the task before it to be done
  // with its own.
  TORCH_EXT_DEVICE void run() {
    prefetch(p.own_x.map);
    prefetch(p.own_y.map);
    prefetch(p.other_x.map);
    prefetch(p.other_y.map);
    for_each_task(p.schedule, [&](const Task& task) {
      const Range tiles = visible_tiles<Tiles::kOwn, Tiles::kOther>(p.visibility, task.tile);
      if (tiles.begin == tiles.end) return;
      const int sharers = Tiles::kOwnsKeys ? static_cast<int>(p.problem.group) : 1;
      const int first_head = task.head * sharers;
      for (int head = first_head; head < first_head + sharers; ++head) {
        const HeadView x = view_head(p.other_x, head), y = view_head(p.other_y, head);
        for (int tile = tiles.begin; tile < tiles.end; ++tile) {
          copy_x(x, head, tile);
          if (head == first_head && tile == tiles.begin) copy_own(head, task.tile);
          copy_y(y, tile);
        }
      }
    });
  }

  TORCH_EXT_DEVICE void copy_own(int head, int tile) {
    wait(shared.own_free, own_parity ^ 1);
    const auto copy = [&](unsigned char* to, const OperandView& operand) {
      copy_rows(to, view_head(operand, head), tile * Tiles::kOwn, Tiles::kBlocks,
                Tiles::kOwnBlockBytes, shared.own_full);
    };
    copy(shared.own_x, p.own_x);
    if (Tiles::kHasDx) copy(shared.own_y, p.own_y);
    own_parity ^= 1;
  }
  TORCH_EXT_DEVICE void copy_x(const HeadView& x, int head, int tile) {
    const int stage = x_at.stage();
    SharedBarrier& full = shared.x_full[stage];
    wait(shared.x_free[stage], x_at.parity() ^ 1);
    copy_rows(shared.x[stage], x, tile * Tiles::kOther, Tiles::kBlocks, Tiles::kOtherBlockBytes,
              full);
    if constexpr (Tiles::kOwnsKeys) {
      constexpr int kBytes = sizeof(shared.statistics[0]);
      arrive_and_expect(full, kBytes);
      copy_bytes(shared.statistics[stage], p.statistics_of(head) + tile * Tiles::kOther / 2, kBytes,
                 full);
    }
    ++x_at.count;
  }
  TORCH_EXT_DEVICE void copy_y(const HeadView& y, int tile) {
    wait(shared.y_free[y_at.stage()], y_at.parity() ^ 1);
    copy_rows(shared.y[y_at.stage()], y, tile * Tiles::kOther, Tiles::kBlocks,
              Tiles::kOtherBlockBytes, shared.y_full[y_at.stage()]);
    ++y_at.count;
  }
};

}  // namespace torch_ext::cuda::hopper
