// The keep mask of a tile and of a row against one number at a time, of every size and place.
#include "cpu/kernels/tile/dropout.h"

#include <gtest/gtest.h>

#include "../helpers.h"
#include "cpu/kernels/tile/tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
class DropoutTest : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(DropoutTest, Scalars);

TYPED_TEST(DropoutTest, TilesAndRowsAreWhatEachPositionSays) {
  using T = TypeParam;
  test::Random random(8);
  int64_t seeds[2] = {-5, 0x123456789abcdef};
  int kept_count = 0;
  for (int repeat = 0; repeat < 400; ++repeat) {
    Problem p;
    p.leading_dims = 2;
    p.leading_sizes[0] = 2;
    p.leading_sizes[1] = 3;
    p.dropout_p = repeat % 2 ? 0.25 : 0.8;
    p.seed.data = seeds;
    p.seed.leading_strides[0] = 1;
    TileRange t{};
    t.head = random.below(6);
    t.query = random.below(1000) + (repeat % 5 == 0 ? int64_t{1} << 33 : 0);
    t.queries = 1 + random.below(test::kTileQueries);
    t.width = round_up(t.queries, Vec<T>::kSize);
    t.key = 4 * random.below(100) + (repeat % 7 == 0 ? (int64_t{1} << 34) - 160 : 0);
    t.keys = 1 + random.below(test::kTileKeys);
    test::FencedMemory memory(test::kTileKeys * test::kTileQueries * sizeof(T));
    T* z = memory.template last<T>(t.keys * t.width);
    dropout_tile(p, t, z);
    const uint32_t threshold = dropout_threshold(p.dropout_p);
    const auto expected = [&](int64_t i, int64_t j) {
      const bool keep = dropout_keeps(static_cast<uint64_t>(seeds[t.head / 3]), t.head % 3,
                                      t.query + i, t.key + j, threshold);
      kept_count += keep;
      return keep ? static_cast<T>(1 / (1 - p.dropout_p)) : T(0);
    };
    for (int64_t j = 0; j < t.keys; ++j)
      for (int64_t i = 0; i < t.queries; ++i) ASSERT_EQ(z[j * t.width + i], expected(i, j));

    const HeadDropout<T> head(p, t.head);
    T* row = memory.template last<T>(t.keys);
    for (int64_t i = 0; i < t.queries; i += 7) {
      dropout_row(head, t.query + i, t.key, t.keys, row);
      for (int64_t j = 0; j < t.keys; ++j) ASSERT_EQ(row[j], expected(i, j));
    }
  }
  EXPECT_GT(kept_count, 0);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
