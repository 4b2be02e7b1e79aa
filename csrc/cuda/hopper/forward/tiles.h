// The sizes of the Hopper forward's tiles, and its shared memory.
#pragma once

#include "cuda/hopper/products.h"
#include "cuda/hopper/warpgroup.h"

namespace torch_ext::cuda::hopper {

// What limits each: the registers of a consuming thread hold a tile's scores (kKeys / 2), their
// weights as 16-bit pairs (kKeys / 4) and the output (kHeadSize / 2); shared memory holds the
// queries and kStages tiles of keys and of values.
template <int kHeadSize_, int kKeys_>
struct ForwardTiles {
  static constexpr int kHeadSize = kHeadSize_;
  static constexpr int kKeys = kKeys_;
  static constexpr int kConsumers = kHeadSize == 64 ? 3 : 2;  // warpgroups
  static constexpr int kQueries = kWarpgroupRows * kConsumers;
  static constexpr int kStages = kHeadSize == 64 ? 4 : 2;
  static constexpr int kThreads = kWarpgroup * (kConsumers + 1);
  // Multiples of 8.
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 240;
  // Whether the warpgroups' products take turns, so that one's softmax runs beside another's
  // products. With large heads products are nearly all there is.
  static constexpr bool kTakesTurns = kHeadSize <= 128;

  // The distance between blocks of 64 columns (hopper_descriptor.h).
  static constexpr int kQueryBlockBytes = kQueries * kBlockRowBytes;
  static constexpr int kKeyBlockBytes = kKeys * kBlockRowBytes;
  static constexpr int kBlocks = kHeadSize / kBlockColumns;

  static_assert(kKeys % 16 == 0 && kKeyBlockBytes % kSwizzleBytes == 0);
  static_assert(kWarpgroup * (kProducerRegisters + kConsumers * kConsumerRegisters) <= kRegisters);

  // Barriers: a tile is complete (full), and all consuming warps are done with it (free).
  struct Shared {
    alignas(kSwizzleBytes) unsigned char query[kBlocks * kQueryBlockBytes];
    alignas(kSwizzleBytes) unsigned char key[kStages][kBlocks * kKeyBlockBytes];
    alignas(kSwizzleBytes) unsigned char value[kStages][kBlocks * kKeyBlockBytes];
    SharedBarrier query_full, query_free;
    SharedBarrier key_full[kStages], key_free[kStages];
    SharedBarrier value_full[kStages], value_free[kStages];
  };
  static_assert(sizeof(Shared) <= kSharedBytes);
};

}  // namespace torch_ext::cuda::hopper
