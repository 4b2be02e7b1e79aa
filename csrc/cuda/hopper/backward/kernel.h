// Gradients of the attention on Hopper, for 16-bit elements. One kernel, for either side:
//   own side queries   dQ = scale Σ dS K                   other side keys
//   own side keys      dK = scale Σ dSᵀ Q, dV = Σ Pᵀ dO    other side queries
// No two tasks add to the same sum; the price is that S and dP are computed for each side.
//
// A block has one producing warpgroup, of which one thread starts all copies, and kConsumers
// consuming ones with 64 rows each. Task: one tile of rows of one head, over all tiles of the other
// side that it sees, and all query heads that read it. Reads its own x and y once, the other side's
// once per own tile. For each tile of the other side:
//   S = x x'ᵀ; dP = y y'ᵀ    products; beside them those into dx and dy of the tile before
//   P = exp(scale S - logsumexp), dS = P (dP - delta)
//   dy += P y'; dx += dS x'   products with P and dS in registers
#pragma once

#include "cuda/hopper/backward/consumer.h"
#include "cuda/hopper/backward/producer.h"

namespace torch_ext::cuda::hopper {

template <class E, class Tiles>
struct BackwardKernel : Tiles {
  static constexpr const char* kName = "hopper backward";
  static constexpr int kBlocksPerProcessor = 1;
  using Parameters = BackwardParameters;
  using Shared = typename Tiles::Shared;

  static TORCH_EXT_DEVICE void run(const Parameters& p) { run_block<BackwardKernel>(p); }

  static TORCH_EXT_DEVICE void produce(const Parameters& p, Shared& shared) {
    BackwardProducer<Tiles>{p, shared}.run();
  }
  static TORCH_EXT_DEVICE void consume(const Parameters& p, Shared& shared, int warpgroup) {
    BackwardConsumer<E, Tiles>{p, shared, warpgroup}.run();
  }

  // An arrival for every copy of rows and of statistics; one of every consuming warp.
  static TORCH_EXT_DEVICE void initialize_all(Shared& shared) {
    constexpr int kConsumingWarps = Tiles::kConsumers * kWarpgroup / kWarpSize;
    initialize(shared.own_full, Tiles::kHasDx ? 2 : 1);
    initialize(shared.own_free, kConsumingWarps);
    for (int i = 0; i < Tiles::kStages; ++i) {
      initialize(shared.x_full[i], Tiles::kOwnsKeys ? 2 : 1);
      initialize(shared.x_free[i], kConsumingWarps);
    }
    for (int i = 0; i < Tiles::kStagesOfY; ++i) {
      initialize(shared.y_full[i], 1);
      initialize(shared.y_free[i], kConsumingWarps);
    }
  }
};

}  // namespace torch_ext::cuda::hopper
