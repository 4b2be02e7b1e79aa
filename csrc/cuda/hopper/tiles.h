// The sizes of the Hopper forward's tiles, and its shared memory.
#pragma once

#include "cuda/primitives/hopper_barrier.h"
#include "cuda/primitives/hopper_descriptor.h"

namespace torch_ext::cuda::hopper {

constexpr int kWarpgroup = 128;     // threads
constexpr int kWarpgroupRows = 64;  // of a matrix product

// A consuming thread's place in its warp, and its warp's in the warpgroup. Not held in registers,
// which scores fill.
TORCH_EXT_DEVICE int lane() { return reread_thread_index() % kWarpSize; }
TORCH_EXT_DEVICE int warp() { return reread_thread_index() / kWarpSize % (kWarpgroup / kWarpSize); }

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
  // Of 65536 registers; multiples of 8.
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
  static_assert(kWarpgroup * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536);

  // Barriers: a tile is complete (full), and all consuming warps are done with it (free).
  struct Shared {
    alignas(kSwizzleBytes) unsigned char query[kBlocks * kQueryBlockBytes];
    alignas(kSwizzleBytes) unsigned char key[kStages][kBlocks * kKeyBlockBytes];
    alignas(kSwizzleBytes) unsigned char value[kStages][kBlocks * kKeyBlockBytes];
    SharedBarrier query_full, query_free;
    SharedBarrier key_full[kStages], key_free[kStages];
    SharedBarrier value_full[kStages], value_free[kStages];
    // The latest even and odd round in which a warpgroup met values that it may not multiply by 0.
    int unsafe_round[kConsumers][2];
  };
  static_assert(sizeof(Shared) <= 232448);
};

// A position in a ring of tiles, and the parity of the phase that a barrier there is in.
template <int kStages>
struct RingPosition {
  unsigned count = 0;  // tiles so far

  TORCH_EXT_DEVICE int stage() const { return static_cast<int>(count % kStages); }
  TORCH_EXT_DEVICE int parity() const { return static_cast<int>(count / kStages % 2); }
};

}  // namespace torch_ext::cuda::hopper
