// The dropout mask of the CUDA kernel, run on the host: that of the CPU.
#include <gtest/gtest.h>

#include <vector>

#include "attention/philox.h"
#include "cuda/operators.h"

namespace torch_ext::test {
namespace {

TEST(CudaDropoutMask, IsThatOfTheCpu) {
  const std::vector<int64_t> seeds = {7, -3};
  constexpr int64_t kHeads = 3, kQueries = 37, kFence = 8;
  constexpr double kDropout = 0.3;
  const uint32_t threshold = dropout_threshold(kDropout);
  for (const int64_t keys : {1, 4, 11, 42}) {
    const int64_t size = static_cast<int64_t>(seeds.size()) * kHeads * kQueries * keys;
    std::vector<uint8_t> kept(size + kFence, 2);
    cuda::dropout_mask<bool>({seeds.data(), kept.data(), static_cast<int64_t>(seeds.size()), kHeads,
                              kQueries, keys, kDropout},
                             {});
    for (int64_t i = 0; i < size; ++i) {
      const int64_t row = i / keys, query = row % kQueries, head = row / kQueries % kHeads;
      const auto seed = static_cast<uint64_t>(seeds[row / kQueries / kHeads]);
      ASSERT_EQ(kept[i], dropout_keeps(seed, head, query, i % keys, threshold))
          << "element " << i << " of " << keys << " keys";
    }
    for (int64_t i = size; i < size + kFence; ++i)
      ASSERT_EQ(kept[i], 2) << "written beyond the end";
  }
}

}  // namespace
}  // namespace torch_ext::test
