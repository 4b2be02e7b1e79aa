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

#include "cuda/hopper/consumer.h"
#include "cuda/hopper/producer.h"

namespace torch_ext::cuda::hopper {

template <class E, class Tiles>
struct ForwardKernel {
  static constexpr const char* kName = "hopper forward";
  static constexpr int kThreads = Tiles::kThreads;
  static constexpr int kBlocksPerProcessor = 1;
  using Parameters = ForwardParameters;
  using Shared = typename Tiles::Shared;

  static TORCH_EXT_DEVICE void run(const Parameters& p) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    if (thread_index() == 0) initialize_all(shared);
    block_barrier();
    // The same in the whole warp, as the compiler can see.
    const int warpgroup = shuffle(thread_index() / kWarpgroup, 0);
    if (warpgroup == Tiles::kConsumers) {
      give_up_registers<Tiles::kProducerRegisters>();
      if (thread_index() % kWarpgroup == 0) ForwardProducer<Tiles>{p, shared}.run();
    } else {
      claim_registers<Tiles::kConsumerRegisters>();
      ForwardConsumer<E, Tiles>{p, shared, warpgroup}.run();
    }
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
    for (int w = 0; w < Tiles::kConsumers; ++w) {
      shared.unsafe_round[w][0] = shared.unsafe_round[w][1] = -1;
    }
    make_barriers_visible();
  }
};

}  // namespace torch_ext::cuda::hopper
