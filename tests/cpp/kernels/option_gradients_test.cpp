// What a tile adds to the gradients of a bias and of a slope against plain loops. That of a bias
// over every kind of broadcast, with small integers: exact in any order.
#include "cpu/kernels/derivatives/option_gradients.h"

#include <gtest/gtest.h>

#include "../helpers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// A tile anywhere in a gradient of so many queries and keys.
template <class T>
TileRange random_tile(test::Random& random, int64_t queries, int64_t keys) {
  TileRange t{};
  t.queries = 1 + random.below(test::kTileQueries);
  t.query = random.below(queries - t.queries + 1);
  t.width = round_up(t.queries, Vec<T>::kSize);
  t.keys = 1 + random.below(test::kTileKeys);
  t.key = random.below(keys - t.keys + 1);
  return t;
}

template <class T>
class BiasGradientTest : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(BiasGradientTest, Scalars);

TYPED_TEST(BiasGradientTest, AddsOverBroadcastDimensions) {
  using T = TypeParam;
  constexpr int64_t kQueries = 70, kKeys = 110;  // of the whole gradient
  test::Random random(8);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    const TileRange t = random_tile<T>(random, kQueries, kKeys);
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

// Written instead of added to, and cleared: nothing beside the tile is touched.
TYPED_TEST(BiasGradientTest, WritesAndClearsTheTileAlone) {
  using T = TypeParam;
  constexpr int64_t kQueries = 70, kKeys = 110;
  const struct {
    int64_t row, col;
  } layouts[] = {{kKeys, 1}, {1, kQueries}, {2 * kKeys, 2}, {1, 0}, {0, 2}, {0, 0}};
  test::Random random(10);
  for (int repeat = 0; repeat < 500; ++repeat) {
    const TileRange t = random_tile<T>(random, kQueries, kKeys);
    std::vector<T> ds(t.keys * t.width), spare(t.keys * t.queries);
    for (T& x : ds) x = static_cast<T>(random.normal());
    for (const auto& layout : layouts) {
      std::vector<T> out(1 + (kQueries - 1) * layout.row + (kKeys - 1) * layout.col);
      for (T& x : out) x = static_cast<T>(random.normal());
      std::vector<T> zeroed = out, written = out;
      for (int64_t i = 0; i < t.queries; ++i)
        for (int64_t j = 0; j < t.keys; ++j) {
          const int64_t at = (t.query + i) * layout.row + (t.key + j) * layout.col;
          zeroed[at] = 0;
          written[at] = ds[j * t.width + i];
        }
      std::vector<T> got = out;
      zero_bias_gradient(t, got.data(), layout.row, layout.col);
      ASSERT_EQ(got, zeroed) << "repeat " << repeat << ", strides " << layout.row << " "
                             << layout.col;
      if (layout.row == 0 || layout.col == 0) continue;
      write_bias_gradient(t, ds.data(), out.data(), layout.row, layout.col, spare.data());
      ASSERT_EQ(out, written) << "repeat " << repeat << ", strides " << layout.row << " "
                              << layout.col;
    }
  }
}

template <class T>
class SlopeGradientTest : public testing::Test {};
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
