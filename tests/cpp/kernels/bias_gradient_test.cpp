// out(i, j) += ds(i, j) over every kind of broadcast, with small integers: exact in any order.
// clang-format off
#include "cpu/kernels/tiles.h"  // which bias_gradient.h uses
#include "cpu/kernels/bias_gradient.h"
// clang-format on

#include <gtest/gtest.h>

#include "../helpers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
class BiasGradientTest : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(BiasGradientTest, Scalars);

TYPED_TEST(BiasGradientTest, AddsOverBroadcastDimensions) {
  using T = TypeParam;
  constexpr int64_t kQueries = 70, kKeys = 110;  // of the whole gradient
  test::Random random(8);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    TileRange t{};
    t.queries = 1 + random.below(test::kTileQueries);
    t.query = random.below(kQueries - t.queries + 1);
    t.width = round_up(t.queries, Vec<T>::kSize);
    t.keys = 1 + random.below(test::kTileKeys);
    t.key = random.below(kKeys - t.keys + 1);
    const struct {
      int64_t row, col;
    } layouts[] = {{kKeys, 1}, {1, kQueries}, {2 * kKeys, 2}, {1, 0},
                   {3, 0},     {0, 1},        {0, 2},         {0, 0}};
    for (const auto& layout : layouts) {
      test::FencedMemory ds_memory(t.keys * t.width * sizeof(T)),
          spare(test::kTileKeys * t.width * sizeof(T));
      T* ds = ds_memory.last<T>(t.keys * t.width);  // NaN beyond `queries`
      for (int64_t j = 0; j < t.keys; ++j)
        for (int64_t i = 0; i < t.queries; ++i)
          ds[j * t.width + i] = static_cast<T>(random.below(17) - 8);

      const int64_t count = 1 + (kQueries - 1) * layout.row + (kKeys - 1) * layout.col;
      std::vector<T> out(count);
      for (T& x : out) x = static_cast<T>(random.below(100));
      std::vector<T> want = out;
      for (int64_t i = 0; i < t.queries; ++i)
        for (int64_t j = 0; j < t.keys; ++j)
          want[(t.query + i) * layout.row + (t.key + j) * layout.col] += ds[j * t.width + i];

      add_bias_gradient<T>(t, ds, out.data(), layout.row, layout.col,
                           spare.last<T>(test::kTileKeys * t.width));
      ASSERT_EQ(out, want) << "repeat " << repeat << ", strides " << layout.row << " "
                           << layout.col;
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
