// The slope gradient of a tile against a plain double loop.
#include "cpu/kernels/head_gradients.h"

#include <gtest/gtest.h>

#include "../helpers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
class SlopeGradientTest : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SlopeGradientTest, Scalars);

TYPED_TEST(SlopeGradientTest, IsTheSumOverRealQueries) {
  using T = TypeParam;
  test::Random random(9);
  for (int repeat = 0; repeat < 200; ++repeat) {
    Problem p;
    p.offset = random.below(50) - 25;
    TileRange t{0, random.below(300), 1 + random.below(test::kTileQueries),
                0, random.below(300), 0};
    t.width = round_up(t.queries, Vec<T>::kSize);
    t.keys = 1 + random.below(test::kTileKeys);
    test::FencedMemory memory(test::kTileKeys * test::kTileQueries * sizeof(T));
    T* ds = memory.template last<T>(t.keys * t.width);
    double want = 0, size = 0;
    for (int64_t j = 0; j < t.keys; ++j)
      for (int64_t i = 0; i < t.width; ++i) {
        const bool inside = i < t.queries;
        T& entry = ds[j * t.width + i];
        entry = inside ? static_cast<T>(random.normal()) : std::numeric_limits<T>::quiet_NaN();
        const int64_t distance = std::abs(t.key + j - t.query - i - p.offset);
        if (inside) want -= static_cast<double>(entry) * static_cast<double>(distance);
        if (inside) size += std::fabs(static_cast<double>(entry)) * static_cast<double>(distance);
      }
    EXPECT_NEAR(slope_gradient(p, t, ds), want, 100 * std::numeric_limits<T>::epsilon() * size);
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
