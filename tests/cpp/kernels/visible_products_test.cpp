// Products in which hidden entries meet inf or NaN: what is hidden is absent, what is visible
// propagates. What a causal limit leaves out of them changes no bit.
#include "cpu/kernels/tile/visible_products.h"

#include <gtest/gtest.h>

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
    weighted_sum<E, true>(kRows, kColumns, kDepth, {a.data(), a_row, a_depth}, seen,
                          {additive.data(), row, depth}, {b.data(), kColumns},
                          {tile.c.data(), kColumns}, spare.last<E>(count * kColumns));
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
  constexpr int64_t kCount = 11 * Vec<T>::kSize;
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

template <class T>
class StepsTest : public testing::Test {
 protected:
  // A tile on or near the diagonal, and a right limit of the window.
  void draw(Problem& p, TileRange& t) {
    p.query_length = p.key_length = 1000;
    p.right = random_.below(3) ? 0 : random_.below(40);
    p.offset = random_.below(3) - 1;
    t = {0, 300 + random_.below(100), 1 + random_.below(test::kTileQueries), 0, 0, 0};
    t.width = round_up(t.queries, Vec<T>::kSize);
    t.key = t.query + random_.below(130) - 70;
    t.keys = 1 + random_.below(test::kTileKeys);
  }
  static bool sees(const Problem& p, const TileRange& t, int64_t i, int64_t j) {
    return i < t.queries && t.key + j <= t.query + i + p.offset + p.right;
  }
  std::vector<T> normal(int64_t count) {
    std::vector<T> x(count);
    for (T& entry : x) entry = static_cast<T>(random_.normal());
    return x;
  }

  test::Random random_{11};
};
using Numbers = testing::Types<float, double>;
TYPED_TEST_SUITE(StepsTest, Numbers);

// Steps cover the tile once, hold all that is seen, and less than a step more.
TYPED_TEST(StepsTest, HoldWhatIsSeen) {
  for (int repeat = 0; repeat < 2000; ++repeat) {
    Problem p;
    TileRange t;
    this->draw(p, t);
    std::vector<int> by_queries(t.keys * t.width), by_keys(t.keys * t.width);
    int64_t at = 0;
    for_each_step_of_queries(p, t, [&](int64_t i, int64_t width, int64_t keys) {
      ASSERT_EQ(i, at);
      at += width;
      for (int64_t j = 0; j < keys; ++j)
        for (int64_t q = i; q < at; ++q) ++by_queries[j * t.width + q];
    });
    ASSERT_EQ(at, t.width);
    at = 0;
    for_each_step_of_keys(p, t, [&](int64_t j, int64_t keys, int64_t i) {
      ASSERT_EQ(j, at);
      at += keys;
      for (; j < at; ++j)
        for (int64_t q = i; q < t.width; ++q) ++by_keys[j * t.width + q];
    });
    ASSERT_EQ(at, t.keys);
    ASSERT_EQ(by_queries, by_keys);
    for (int64_t j = 0; j < t.keys; ++j)
      for (int64_t i = 0; i < t.queries; ++i) {
        const int64_t last = std::min(i / kStep * kStep + kStep, t.queries) - 1;
        const bool is_near = this->sees(p, t, last, j / kStep * kStep);
        ASSERT_EQ(by_queries[j * t.width + i], is_near) << "query " << i << ", key " << j;
        ASSERT_TRUE(is_near || !this->sees(p, t, i, j));
      }
  }
}

// Before an edge nothing is hidden, behind it everything, and at it what the window hides.
TYPED_TEST(StepsTest, HaveEdgesWhereARightLimitAloneHides) {
  using T = TypeParam;
  int edges = 0, others = 0;
  for (int repeat = 0; repeat < 2000; ++repeat) {
    Problem p;
    TileRange t;
    this->draw(p, t);
    if (repeat % 3 == 0) p.left = this->random_.below(100);
    const auto sees = [&](int64_t i, int64_t j) {
      return this->sees(p, t, i, j) && t.key + j >= t.query + i + p.offset - p.left;
    };
    const T poison = std::numeric_limits<T>::quiet_NaN();
    std::vector<T> additive(t.keys * t.width, poison), spare(t.keys * t.width);
    const Visibility seen = additive_edge<T>(p, t, additive.data(), spare.data());
    ++(seen == Visibility::kEdge ? edges : others);
    if (seen == Visibility::kNone) continue;
    for (int64_t i = 0; i < t.queries; ++i) {
      const int64_t step = i / kStep * kStep, plain = plain_keys(p, t, seen, step);
      const int64_t end = keys_seen(p, t, step);
      ASSERT_LE(plain, end);
      for (int64_t j = 0; j < t.keys; ++j) {
        const T entry = additive[j * t.width + i];
        const bool is_at_edge = j >= plain && j < end;
        const T want = sees(i, j) ? T(0) : -kInfinity<T>;
        ASSERT_TRUE(is_at_edge ? entry == want : sees(i, j) == (j < plain))
            << "query " << i << ", key " << j;
        ASSERT_TRUE(seen != Visibility::kEdge || is_at_edge || entry != entry);
      }
    }
  }
  EXPECT_GT(edges, 500);
  EXPECT_GT(others, 500);
}

// What an edge leaves unwritten must not matter to visible entries that meet inf.
TYPED_TEST(StepsTest, CompleteTheEdgeThatMeetsInfinity) {
  using T = TypeParam;
  constexpr int64_t kColumns = 3 * Vec<T>::kSize;
  int edges = 0;
  for (int repeat = 0; repeat < 300; ++repeat) {
    Problem p;
    TileRange t;
    this->draw(p, t);
    const int64_t tile = t.keys * t.width;
    std::vector<T> whole(tile), edge(tile), scores(tile), weights = this->normal(tile);
    if (additive_tile<T>(p, t, whole.data(), scores.data()) != Visibility::kSome) continue;
    for (int64_t e = 0; e < tile; ++e)
      if (whole[e] != 0) weights[e] = 0;
    auto v = this->normal(t.keys * kColumns), dO = this->normal(t.queries * kColumns);
    v[this->random_.below(t.keys) * kColumns] = kInfinity<T>;
    dO[this->random_.below(t.queries) * kColumns] = kInfinity<T>;
    const auto sums = [&](auto hidden) {
      std::vector<T> of_queries(t.queries * kColumns), of_keys(t.keys * kColumns);
      std::vector<T> spare(test::kTileKeys * kColumns);
      sum_over_keys<T, false>(p, t, {weights.data(), 1, t.width}, hidden(), {v.data(), kColumns},
                              {of_queries.data(), kColumns}, spare.data(), nullptr);
      sum_over_queries<T, false>(p, t, {weights.data(), t.width, 1}, hidden(),
                                 {dO.data(), kColumns}, {of_keys.data(), kColumns}, spare.data(),
                                 nullptr);
      return std::pair(of_queries, of_keys);
    };
    const auto want = sums([&] { return Hidden<T>{Visibility::kSome, whole.data()}; });
    const auto got = sums([&] {
      edge.assign(tile, -kInfinity<T>);
      const Visibility seen = additive_edge<T>(p, t, edge.data(), scores.data());
      edges += seen == Visibility::kEdge;
      return Hidden<T>{seen, edge.data()};
    });
    ASSERT_EQ(got, want);
  }
  EXPECT_GT(edges, 100);
}

TYPED_TEST(StepsTest, LeaveTheBitsOfWholeProducts) {
  using T = TypeParam;
  constexpr int64_t kDepth = 40, kColumns = 3 * Vec<T>::kSize;
  for (int repeat = 0; repeat < 200; ++repeat) {
    Problem p;
    TileRange t;
    this->draw(p, t);
    const int64_t tile = t.keys * t.width;
    const auto a = this->normal(t.keys * kDepth), b = this->normal(kDepth * t.width);
    std::vector<T> whole(tile), seen(tile, std::numeric_limits<T>::quiet_NaN());
    tile_product<T, false>(t.keys, t.width, kDepth, {a.data(), kDepth, 1}, {b.data(), t.width},
                           {whole.data(), t.width});
    product_of_seen<T, false>(p, t, kDepth, {a.data(), kDepth, 1}, b.data(), seen.data(), nullptr);
    std::vector<T> additive(tile, -kInfinity<T>);
    for (int64_t j = 0; j < t.keys; ++j)
      for (int64_t i = 0; i < t.width; ++i) {
        const int64_t at = j * t.width + i;
        if (this->sees(p, t, i, j)) {
          ASSERT_EQ(seen[at], whole[at]);
          additive[at] = 0;
        } else {  // weights of 0, where they are looked at
          whole[at] = 0;
          if (seen[at] == seen[at]) seen[at] = 0;
        }
      }
    const auto v = this->normal(t.keys * kColumns), dO = this->normal(t.queries * kColumns);
    for (const bool add : {false, true}) {
      const auto of_queries = this->normal(t.queries * kColumns);
      const auto of_keys = this->normal(t.keys * kColumns);
      std::vector<T> spare(test::kTileKeys * kColumns), want = of_queries, got = of_queries;
      const auto sum = add ? weighted_sum<T, true> : weighted_sum<T, false>;
      const Hidden<T> hidden{Visibility::kSome, additive.data()};
      sum(t.queries, kColumns, t.keys, {whole.data(), 1, t.width}, Visibility::kSome,
          {additive.data(), 1, t.width}, {v.data(), kColumns}, {want.data(), kColumns},
          spare.data(), nullptr);
      (add ? sum_over_keys<T, true>
           : sum_over_keys<T, false>)(p, t, {seen.data(), 1, t.width}, hidden, {v.data(), kColumns},
                                      {got.data(), kColumns}, spare.data(), nullptr);
      ASSERT_EQ(got, want);
      want = got = of_keys;
      sum(t.keys, kColumns, t.queries, {whole.data(), t.width, 1}, Visibility::kSome,
          {additive.data(), t.width, 1}, {dO.data(), kColumns}, {want.data(), kColumns},
          spare.data(), nullptr);
      (add ? sum_over_queries<T, true>
           : sum_over_queries<T, false>)(p, t, {seen.data(), t.width, 1}, hidden,
                                         {dO.data(), kColumns}, {got.data(), kColumns},
                                         spare.data(), nullptr);
      ASSERT_EQ(got, want);
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
