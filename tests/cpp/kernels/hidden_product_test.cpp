// Products in which hidden entries meet inf or NaN: what is hidden is absent, what is visible
// propagates.
#include <gtest/gtest.h>

#include "../helpers.h"
#include "cpu/kernels/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
class HiddenProductTest : public testing::Test {
 protected:
  static constexpr int64_t kRows = 13, kDepth = 37, kColumns = 3 * Vec<T>::kSize;

  struct Tile {
    std::vector<T> a = std::vector<T>(kRows * kDepth), additive = std::vector<T>(kRows * kDepth);
    std::vector<T> b = std::vector<T>(kDepth * kColumns), c = std::vector<T>(kRows * kColumns);
  };

  // Weights are 0 where hidden, as the softmax leaves them. `transposed`: A lies with its depth
  // down.
  Tile random_tile(bool transposed, int64_t hidden_of_ten) {
    Tile tile;
    for (T& x : tile.b) x = static_cast<T>(random_.normal());
    for (T& x : tile.c) x = static_cast<T>(random_.normal());
    for (size_t e = 0; e < tile.a.size(); ++e) {
      const bool hidden = random_.below(10) < hidden_of_ten;
      tile.additive[e] = hidden ? -kInfinity<T> : T(0);
      tile.a[e] = hidden ? T(0) : static_cast<T>(random_.uniform(0.1, 1));
    }
    row_ = transposed ? 1 : kDepth;
    depth_ = transposed ? kRows : 1;
    return tile;
  }

  // Visible terms alone, in double.
  void expect_visible_sum(Tile tile, Visibility seen) {
    std::vector<double> want(tile.c.begin(), tile.c.end());
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t k = 0; k < kDepth; ++k) {
        const int64_t e = i * row_ + k * depth_;
        if (tile.additive[e] == -kInfinity<T>) continue;
        for (int64_t j = 0; j < kColumns; ++j)
          want[i * kColumns + j] += double(tile.a[e]) * double(tile.b[k * kColumns + j]);
      }
    test::FencedMemory spare(kDepth * kColumns * sizeof(T));
    weighted_sum<T>(kRows, kColumns, kDepth, {tile.a.data(), row_, depth_}, seen,
                    tile.additive.data(), {tile.b.data(), kColumns}, {tile.c.data(), kColumns},
                    spare.last<T>(kDepth * kColumns));
    for (int64_t e = 0; e < kRows * kColumns; ++e) {
      const double got = tile.c[e], tolerance = 100 * std::numeric_limits<T>::epsilon();
      ASSERT_TRUE(test::same(got, want[e]) || std::fabs(got - want[e]) <= tolerance)
          << "row " << e / kColumns << ", column " << e % kColumns << ": " << got << " instead of "
          << want[e];
    }
  }

  test::Random random_{7};
  int64_t row_ = 0, depth_ = 0;
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(HiddenProductTest, Scalars);

TYPED_TEST(HiddenProductTest, FiniteTiles) {
  for (const bool transposed : {false, true}) {
    this->expect_visible_sum(this->random_tile(transposed, 0), Visibility::kAll);
    this->expect_visible_sum(this->random_tile(transposed, 5), Visibility::kSome);
  }
}

TYPED_TEST(HiddenProductTest, InfinityAndNanReachExactlyTheRowsThatSeeThem) {
  using T = TypeParam;
  for (const bool transposed : {false, true})
    for (const T poison : {kInfinity<T>, -kInfinity<T>, std::numeric_limits<T>::quiet_NaN()})
      for (int64_t column = 0; column < this->kColumns; ++column) {
        auto tile = this->random_tile(transposed, 5);
        tile.b[this->random_.below(this->kDepth) * this->kColumns + column] = poison;
        this->expect_visible_sum(tile, Visibility::kSome);
        if (this->HasFatalFailure()) return;
      }
}

TYPED_TEST(HiddenProductTest, NothingReachesWhereAllIsHidden) {
  using T = TypeParam;
  for (const bool transposed : {false, true}) {
    auto tile = this->random_tile(transposed, 10);
    for (T& x : tile.b) x = std::numeric_limits<T>::quiet_NaN();
    this->expect_visible_sum(tile, Visibility::kSome);
  }
}

TYPED_TEST(HiddenProductTest, FindsEveryElementThatIsNotFinite) {
  using T = TypeParam;
  constexpr int64_t kCount = 5 * Vec<T>::kSize;
  std::vector<T> row(kCount, std::numeric_limits<T>::max());
  EXPECT_TRUE(all_finite(row.data(), kCount));
  EXPECT_TRUE(all_finite(row.data(), 0));
  for (T& x : row)
    for (const T poison : {kInfinity<T>, -kInfinity<T>, std::numeric_limits<T>::quiet_NaN()}) {
      x = poison;
      EXPECT_FALSE(all_finite(row.data(), kCount));
      x = std::numeric_limits<T>::lowest();
    }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
