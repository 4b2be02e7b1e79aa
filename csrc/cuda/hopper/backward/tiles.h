// The sizes of the Hopper backward's tiles, and its shared memory.
#pragma once

#include "cuda/hopper/backward/parameters.h"
#include "cuda/hopper/products.h"
#include "cuda/hopper/warpgroup.h"

namespace torch_ext::cuda::hopper {

// Which gradients of the own side a kernel computes: dx = scale dS x', of query or key, and
// dy = P y', of value, where x' and y' are the other side's.
enum class Gradients { kQuery, kKey, kValue, kKeyAndValue };

// What limits each: the registers of a consuming thread hold a tile's scores and dP (kOther / 2
// each), both again as 16-bit pairs (kOther / 4 each) and the gradients (kHeadSize / 2 each);
// shared memory holds the own tile and kStages tiles of the other side's x and y.
template <int kHeadSize_, Gradients kGradients, int kOther_>
struct BackwardTiles {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kOther = kOther_;
  static constexpr bool kOwnsKeys = kGradients != Gradients::kQuery;
  static constexpr bool kHasDx = kGradients != Gradients::kValue;
  static constexpr bool kHasDy =
      kGradients == Gradients::kValue || kGradients == Gradients::kKeyAndValue;

  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kOwn = kWarpgroupRows * kConsumers;
  static constexpr int kStages = kHeadSize == 64 ? 4 : kHeadSize == 128 ? 3 : 2;  // of x
  // With heads of 256 there is no room for another one, where both own matrices are held.
  static constexpr int kStagesOfY = kHeadSize == 256 && kHasDx ? 1 : kStages;
  static constexpr int kThreads = kWarpgroup * (kConsumers + 1);
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;  // multiples of 8

  // The distance between blocks of 64 columns (hopper_descriptor.h).
  static constexpr int kOwnBlockBytes = kOwn * kBlockRowBytes;
  static constexpr int kOtherBlockBytes = kOther * kBlockRowBytes;
  static constexpr int kBlocks = kHeadSize / kBlockColumns;

  static_assert(kOther % 16 == 0 && kOther <= 128 && kOtherBlockBytes % kSwizzleBytes == 0);
  static_assert(kWarpgroup * (kProducerRegisters + kConsumers * kConsumerRegisters) <= kRegisters);

  // Barriers: a tile is complete (full), and all consuming warps are done with it (free). Where the
  // other side are queries, their statistics come with x.
  struct Shared {
    alignas(kSwizzleBytes) unsigned char own_x[kBlocks * kOwnBlockBytes];
    alignas(kSwizzleBytes) unsigned char own_y[kHasDx ? kBlocks * kOwnBlockBytes : 16];
    alignas(kSwizzleBytes) unsigned char x[kStages][kBlocks * kOtherBlockBytes];
    alignas(kSwizzleBytes) unsigned char y[kStagesOfY][kBlocks * kOtherBlockBytes];
    RowStatistics statistics[kStages][kOwnsKeys ? kOther / 2 : 1];
    SharedBarrier own_full, own_free;
    SharedBarrier x_full[kStages], x_free[kStages];
    SharedBarrier y_full[kStagesOfY], y_free[kStagesOfY];
  };
  static_assert(sizeof(Shared) <= kSharedBytes);
};

}  // namespace torch_ext::cuda::hopper
