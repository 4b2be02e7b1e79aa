// Products in which hidden entries meet inf or NaN: what is hidden is absent, what is visible
// propagates.
#include <gtest/gtest.h>

#include "cpu/kernels/visible_products.h"
#include "elements.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class E>
class HiddenProductTest : public testing::Test {
 protected:
  using T = SumOf<E>;
  static constexpr int64_t kRows = 13, kDepth = 37, kColumns = 3 * Vec<T>::kSize;

  // Terms of A (kRows x kDepth), of B (kDepth x kColumns), and C.
  struct Tile {
    std::vector<T> a = std::vector<T>(kRows * kDepth), additive = std::vector<T>(kRows * kDepth);
    std::vector<T> b = std::vector<T>(kDepth * kColumns), c = std::vector<T>(kRows * kColumns);
  };

  // Weights are 0 where hidden, as the softmax leaves them.
  Tile random_tile(int64_t hidden_of_ten) {
    Tile tile;
    for (T& x : tile.b) x = Terms<E>::rounded(random_.normal());
    for (T& x : tile.c) x = static_cast<T>(random_.normal());
    for (size_t e = 0; e < tile.a.size(); ++e) {
      const bool hidden = random_.below(10) < hidden_of_ten;
      tile.additive[e] = hidden ? -kInfinity<T> : T(0);
      tile.a[e] = hidden ? T(0) : Terms<E>::rounded(random_.uniform(0.1, 1));
    }
    return tile;
  }

  // (rows x terms) into elements at [i * row + k * depth]; the term after the last one is 0.
  static std::vector<E> pack(const std::vector<T>& x, int64_t rows, int64_t terms, int64_t row,
                             int64_t depth, int64_t row_step, int64_t term_step) {
    std::vector<E> out(static_cast<size_t>(rows * elements<E>(terms)));
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < elements<E>(terms); ++k) {
        const int64_t term = k * kTerms<E>;
        out[static_cast<size_t>(i * row + k * depth)] =
            Terms<E>::element(&x[static_cast<size_t>(i * row_step + term * term_step)],
                              term + 1 < terms ? term_step : 0);
      }
    return out;
  }

  // Visible terms alone, in double, with A and its additive tile lying with their depth down
  // (`transposed`) or across.
  void expect_visible_sum(Tile tile, Visibility seen, bool transposed) {
    std::vector<double> want(tile.c.begin(), tile.c.end());
    std::vector<T> additive(tile.additive.size());
    const int64_t row = transposed ? 1 : kDepth, depth = transposed ? kRows : 1;
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t k = 0; k < kDepth; ++k) {
        const int64_t e = i * kDepth + k;
        additive[i * row + k * depth] = tile.additive[e];
        if (tile.additive[e] == -kInfinity<T>) continue;
        for (int64_t j = 0; j < kColumns; ++j)
          want[i * kColumns + j] += double(tile.a[e]) * double(tile.b[k * kColumns + j]);
      }
    const int64_t count = elements<E>(kDepth);
    const int64_t a_row = transposed ? 1 : count, a_depth = transposed ? kRows : 1;
    const std::vector<E> a = pack(tile.a, kRows, kDepth, a_row, a_depth, kDepth, 1);
    const std::vector<E> b = pack(tile.b, kColumns, kDepth, 1, kColumns, 1, kColumns);
    test::FencedMemory spare(count * kColumns * sizeof(E));
    weighted_sum<E>(kRows, kColumns, kDepth, {a.data(), a_row, a_depth}, seen,
                    {additive.data(), row, depth}, {b.data(), kColumns}, {tile.c.data(), kColumns},
                    spare.last<E>(count * kColumns));
    for (int64_t e = 0; e < kRows * kColumns; ++e) {
      const double got = tile.c[e], tolerance = 100 * std::numeric_limits<T>::epsilon();
      ASSERT_TRUE(test::same(got, want[e]) || std::fabs(got - want[e]) <= tolerance)
          << "row " << e / kColumns << ", column " << e % kColumns << ": " << got << " instead of "
          << want[e];
    }
  }

  test::Random random_{7};
};
TYPED_TEST_SUITE(HiddenProductTest, AllElements);

TYPED_TEST(HiddenProductTest, FiniteTiles) {
  for (const bool transposed : {false, true}) {
    this->expect_visible_sum(this->random_tile(0), Visibility::kAll, transposed);
    this->expect_visible_sum(this->random_tile(5), Visibility::kSome, transposed);
  }
}

TYPED_TEST(HiddenProductTest, InfinityAndNanReachExactlyTheRowsThatSeeThem) {
  using T = SumOf<TypeParam>;
  for (const bool transposed : {false, true})
    for (const T poison : {kInfinity<T>, -kInfinity<T>, std::numeric_limits<T>::quiet_NaN()})
      for (int64_t column = 0; column < this->kColumns; ++column) {
        auto tile = this->random_tile(5);
        tile.b[this->random_.below(this->kDepth) * this->kColumns + column] = poison;
        this->expect_visible_sum(tile, Visibility::kSome, transposed);
        if (this->HasFatalFailure()) return;
      }
}

TYPED_TEST(HiddenProductTest, NothingReachesWhereAllIsHidden) {
  using T = SumOf<TypeParam>;
  for (const bool transposed : {false, true}) {
    auto tile = this->random_tile(10);
    for (T& x : tile.b) x = std::numeric_limits<T>::quiet_NaN();
    this->expect_visible_sum(tile, Visibility::kSome, transposed);
  }
}

TYPED_TEST(HiddenProductTest, FindsEveryTermThatIsNotFinite) {
  using T = SumOf<TypeParam>;
  constexpr int64_t kCount = 5 * Vec<T>::kSize;
  T terms[2] = {Terms<TypeParam>::rounded(3e38), Terms<TypeParam>::rounded(-3e38)};
  const TypeParam large = Terms<TypeParam>::element(terms, 1);
  std::vector<TypeParam> row(kCount, large);
  EXPECT_TRUE(all_finite(row.data(), kCount));
  EXPECT_TRUE(all_finite(row.data(), 0));
  for (TypeParam& x : row)
    for (int64_t part = 0; part < kTerms<TypeParam>; ++part)
      for (const T poison : {kInfinity<T>, -kInfinity<T>, std::numeric_limits<T>::quiet_NaN()}) {
        T poisoned[2] = {terms[0], terms[1]};
        poisoned[part] = poison;
        x = Terms<TypeParam>::element(poisoned, 1);
        EXPECT_FALSE(all_finite(row.data(), kCount));
        x = large;
      }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
