// O = softmax(scale Q Kᵀ) V and its logsumexp on Hopper, for 16-bit elements.
//
// A block has one producing warpgroup, of which one thread starts all copies, and kConsumers
// consuming ones with 64 queries each. Keys and values pass through rings of kStages tiles. Task:
// one tile of queries of one head (schedule.h), its keys from the last visible tile to the first.
// Reads Q once, K and V once per tile of queries; writes O, logsumexp and residual. What a
// warpgroup does for tile j of those it reads, in this order:
//   S_j = Q K_jᵀ; O = O + P_{j-1} V_{j-1}    products, started together
//   P_j = exp(scale (S_j - m))               while the second product runs, and other warpgroups'
//   O = alpha O
#pragma once

#include "cuda/hopper/forward/consumer.h"
#include "cuda/hopper/forward/producer.h"

namespace torch_ext::cuda::hopper {

template <class E, class Tiles>
struct ForwardKernel : Tiles {
  static constexpr const char* kName = "hopper forward";
  static constexpr int kBlocksPerProcessor = 1;
  using Parameters = ForwardParameters;
  using Shared = typename Tiles::Shared;

  static TORCH_EXT_DEVICE void run(const Parameters& p) { run_block<ForwardKernel>(p); }

  static TORCH_EXT_DEVICE void produce(const Parameters& p, Shared& shared) {
    ForwardProducer<Tiles>{p, shared}.run();
  }
  static TORCH_EXT_DEVICE void consume(const Parameters& p, Shared& shared, int warpgroup) {
    ForwardConsumer<E, Tiles>{p, shared, warpgroup}.run();
  }

  static TORCH_EXT_DEVICE void initialize_all(Shared& shared) {
    constexpr int kConsumingWarps = Tiles::kConsumers * kWarpgroup / kWarpSize;
    initialize(shared.query_full, 1);
    initialize(shared.query_free, kConsumingWarps);
    for (int i = 0; i < Tiles::kStages; ++i) {
      initialize(shared.key_full[i], 1);
      initialize(shared.value_full[i], 1);
      initialize(shared.key_free[i], kConsumingWarps);
      initialize(shared.value_free[i], kConsumingWarps);
    }
  }
};

}  // namespace torch_ext::cuda::hopper
