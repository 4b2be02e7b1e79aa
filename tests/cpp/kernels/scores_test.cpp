// The additive tile against a matrix made by plain loops over mask, bias, slopes and window, and
// the scores that must not see what is hidden.
#include "cpu/kernels/tile/scores.h"

#include <gtest/gtest.h>

#include <list>

#include "../helpers.h"
#include "cpu/kernels/tile/tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

constexpr double kHidden = -test::kInf;

// What is added to each score of (heads, N, M), as the definition says; written without the
// kernels.
struct Expected {
  int64_t n, m;
  std::vector<double> added;
  double at(int64_t head, int64_t i, int64_t j) const { return added[(head * n + i) * m + j]; }
};

template <class T>
class ScoresTest : public testing::Test {
 protected:
  static constexpr int64_t kTile = test::kTileKeys * test::kTileQueries;

  // Random mask and bias, each dimension broadcast or not, in a random order in memory.
  Operand random_operand(DType dtype, int64_t heads, int64_t n, int64_t m,
                         std::vector<double>& values) {
    int64_t sizes[3] = {heads, n, m}, strides[3] = {}, order[3] = {0, 1, 2}, count = 1;
    for (int64_t d = 2; d > 0; --d) std::swap(order[d], order[random_.below(d + 1)]);
    for (const int64_t d : order) {
      if (random_.below(4) == 0) continue;
      strides[d] = count;
      count = count * sizes[d] + random_.below(3);
    }
    storage_.emplace_back(static_cast<int64_t>(count * sizeof(T)));
    T* data = storage_.back().template last<T>(count);
    Operand x;
    x.dtype = dtype;
    x.data = data;
    x.leading_strides[0] = strides[0];
    x.row_stride = strides[1];
    x.col_stride = strides[2];
    const int64_t hidden_of_ten = random_.below(11);
    for (int64_t i = 0; i < count; ++i) {
      const bool hide = random_.below(10) < hidden_of_ten;
      if (dtype == DType::Bool)
        reinterpret_cast<bool*>(data)[i] = !hide;
      else
        data[i] = hide && random_.below(2) ? -kInfinity<T> : static_cast<T>(random_.normal());
    }
    values.resize(heads * n * m);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
          const int64_t at = h * strides[0] + i * strides[1] + j * strides[2];
          values[(h * n + i) * m + j] = dtype == DType::Bool
                                            ? (reinterpret_cast<bool*>(data)[at] ? 0 : kHidden)
                                            : static_cast<double>(data[at]);
        }
    return x;
  }

  Expected random_problem(Problem& p) {
    storage_.clear();
    const int64_t heads = 1 + random_.below(3), n = 1 + random_.below(200),
                  m = 1 + random_.below(200);
    p.leading_dims = 1;
    p.leading_sizes[0] = heads;
    p.query_length = n;
    p.key_length = m;
    if (random_.below(2)) p.right = random_.below(4) ? random_.below(120) : 0;
    if (random_.below(3) == 0) p.left = random_.below(120);
    if (random_.below(2)) p.offset = m - n;
    p.slopes = {};
    if (random_.below(3) == 0) {
      p.slopes.data = slopes_;
      p.slopes.dtype = sizeof(T) == 8 ? DType::Float64 : DType::Float32;
      p.slopes.leading_strides[0] = random_.below(2);
      for (T& slope : slopes_) slope = static_cast<T>(random_.normal());
    }
    std::vector<double> mask, bias;
    if (random_.below(2)) p.mask = random_operand(DType::Bool, heads, n, m, mask);
    if (random_.below(2))
      p.bias = random_operand(sizeof(T) == 8 ? DType::Float64 : DType::Float32, heads, n, m, bias);
    Expected expected{n, m, std::vector<double>(heads * n * m)};
    for (int64_t e = 0; e < heads * n * m; ++e) {
      if (p.bias) expected.added[e] = bias[e];
      if (p.mask && mask[e] == kHidden) expected.added[e] = kHidden;
      const int64_t distance = e % m - e / m % n - p.offset;
      if (p.slopes && expected.added[e] != kHidden)
        expected.added[e] =
            std::fma(-slopes_[e / (m * n) * p.slopes.leading_strides[0]],
                     static_cast<T>(std::abs(distance)), static_cast<T>(expected.added[e]));
      if (distance > p.right || distance < -p.left) expected.added[e] = kHidden;
    }
    return expected;
  }

  TileRange random_range(const Problem& p) {
    TileRange t{};
    t.head = random_.below(p.leading_sizes[0]);
    t.query = random_.below(p.query_length);
    t.queries = 1 + random_.below(std::min(test::kTileQueries, p.query_length - t.query));
    t.width = round_up(t.queries, Vec<T>::kSize) + Vec<T>::kSize * random_.below(2);
    t.width = std::min(t.width, test::kTileQueries);
    t.key = random_.below(p.key_length);
    t.keys = 1 + random_.below(std::min(test::kTileKeys, p.key_length - t.key));
    return t;
  }

  test::Random random_{6};
  std::list<test::FencedMemory> storage_;
  T slopes_[3];
  test::FencedMemory additive_{kTile * sizeof(T)}, spare_{kTile * sizeof(T)};
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ScoresTest, Scalars);

TYPED_TEST(ScoresTest, AdditiveTileIsTheBooleanMatrix) {
  using T = TypeParam;
  int seen_count[3] = {};
  for (int repeat = 0; repeat < 4000; ++repeat) {
    Problem p;
    const Expected expected = this->random_problem(p);
    const TileRange t = this->random_range(p);
    SCOPED_TRACE(testing::Message()
                 << "repeat " << repeat << ": N " << p.query_length << ", M " << p.key_length
                 << ", window " << p.left << " " << p.right << ", offset " << p.offset
                 << ", slopes " << bool(p.slopes) << ", mask " << bool(p.mask) << ", bias "
                 << bool(p.bias) << ", queries " << t.query << " + " << t.queries << ", keys "
                 << t.key << " + " << t.keys);
    this->additive_.poison();
    this->spare_.poison();
    T* additive = this->additive_.template last<T>(t.keys * t.width);
    const Visibility seen =
        additive_tile<T>(p, t, additive, this->spare_.template last<T>(t.keys * t.width));
    ++seen_count[static_cast<int>(seen)];

    bool all = true, none = true;
    for (int64_t j = 0; j < t.keys; ++j)
      for (int64_t i = 0; i < t.width; ++i) {
        const double want = i < t.queries ? expected.at(t.head, t.query + i, t.key + j) : kHidden;
        if (i < t.queries) {
          all = all && want == 0;
          none = none && want == kHidden;
        }
        ASSERT_TRUE(seen != Visibility::kSome || additive[j * t.width + i] == want)
            << "query " << i << ", key " << j;
      }
    ASSERT_EQ(seen == Visibility::kNone, none);
    ASSERT_EQ(seen == Visibility::kAll, all);
  }
  for (const int count : seen_count) EXPECT_GT(count, 100);  // each answer was tried
}

TYPED_TEST(ScoresTest, VisibleKeysOfAWindow) {
  Problem p;
  p.query_length = 100;
  p.key_length = 60;
  EXPECT_EQ(visible_keys(p, 0, 64).begin, 0);
  EXPECT_EQ(visible_keys(p, 0, 64).end, 60);
  for (const int64_t offset : {0, -40})
    for (const int64_t left : {int64_t{0}, int64_t{7}, kUnlimited})
      for (const int64_t right : {int64_t{0}, int64_t{5}, kUnlimited})
        for (int64_t query = 0; query < 100; query += 9) {
          p.offset = offset;
          p.left = left;
          p.right = right;
          const int64_t queries = std::min<int64_t>(9, 100 - query);
          const KeyRange range = visible_keys(p, query, queries);
          int64_t begin = -1, end = -1;
          for (int64_t j = 0; j < p.key_length; ++j)
            for (int64_t i = query; i < query + queries; ++i)
              if (j - i - offset >= -left && j - i - offset <= right) {
                if (begin < 0) begin = j;
                end = j + 1;
              }
          if (begin < 0) {
            EXPECT_EQ(range.begin, range.end);
          } else {
            EXPECT_EQ(range.begin, begin);
            EXPECT_EQ(range.end, end);
          }
        }
}

TYPED_TEST(ScoresTest, ScoreHidesWhateverTheProductIs) {
  using T = TypeParam;
  using V = Vec<T>;
  const T inf = kInfinity<T>, nan = std::numeric_limits<T>::quiet_NaN();
  for (const T scale : {T(0.125), T(0), T(-2)})
    for (const T product : {T(0), T(-3), T(1e30), inf, -inf, nan})
      for (const T additive : {-inf, T(0), T(1.5), inf, nan})
        for (const T cap : {T(0), T(2.5)}) {
          Problem p;
          p.scale = scale;
          p.softcap = cap;
          const ScoreRule<T> rule(p);
          V u = V::fill(0);
          T got[V::kSize], tanh_[V::kSize];
          if (cap > 0)
            rule.template score<true, true>(V::fill(product), V::fill(additive), &u).store(got);
          else
            rule.template score<true, false>(V::fill(product), V::fill(additive), &u).store(got);
          u.store(tanh_);
          T want = additive == -inf ? -inf : std::fma(product, scale, additive);
          if (cap > 0 && additive != -inf) want = tanh_[0] * cap + additive;
          for (const T lane : got)
            EXPECT_TRUE(test::same(lane, want)) << product << " " << scale << " " << additive;
        }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
