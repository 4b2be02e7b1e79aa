// Every helper of vec.h against the scalar operation it stands for.
#include "cpu/kernels/primitives/vec.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "../helpers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

using test::same;

template <class T>
class VecTest : public testing::Test {
 protected:
  static constexpr int kSize = Vec<T>::kSize;

  VecTest() {
    const T inf = kInfinity<T>, nan = std::numeric_limits<T>::quiet_NaN();
    special_ = {0,
                T(-0.0),
                1,
                -1,
                T(0.5),
                T(-1.5),
                T(2.5),
                T(3e5),
                inf,
                -inf,
                nan,
                std::numeric_limits<T>::min(),
                std::numeric_limits<T>::denorm_min(),
                std::numeric_limits<T>::max(),
                std::numeric_limits<T>::lowest()};
  }

  // Calls check(a, b, c) on every triple of special values, each in its lane of a vector of other
  // ones.
  template <class Check>
  void for_all_triples(const Check& check) {
    test::Random random(1);
    std::vector<T> a(kSize), b(kSize), c(kSize);
    const auto n = static_cast<int64_t>(special_.size());
    for (int64_t i = 0; i < n * n * n; i += kSize) {
      for (int lane = 0; lane < kSize; ++lane) {
        const int64_t triple = (i + lane) % (n * n * n);
        a[lane] = special_[triple % n];
        b[lane] = special_[triple / n % n];
        c[lane] = special_[triple / n / n];
      }
      check(a, b, c);
    }
  }

  // Checks vector(A, B, C) against scalar(a, b, c) in every lane.
  template <class VectorOp, class ScalarOp>
  void expect_lanes(const VectorOp& vector, const ScalarOp& scalar) {
    for_all_triples([&](const auto& a, const auto& b, const auto& c) {
      T result[kSize];
      vector(Vec<T>::load(a.data()), Vec<T>::load(b.data()), Vec<T>::load(c.data())).store(result);
      for (int i = 0; i < kSize; ++i)
        ASSERT_TRUE(same(result[i], scalar(a[i], b[i], c[i])))
            << a[i] << " " << b[i] << " " << c[i] << ": got " << result[i] << ", expected "
            << scalar(a[i], b[i], c[i]);
    });
  }

  std::vector<T> special_;
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(VecTest, Scalars);

TYPED_TEST(VecTest, LoadsAndStoresAtAnyAlignmentAndNothingElse) {
  using T = TypeParam;
  constexpr int kSize = Vec<T>::kSize;
  for (int misalignment = 0; misalignment <= kSize; ++misalignment) {
    test::FencedMemory in(kSize * sizeof(T)), out((kSize + misalignment) * sizeof(T));
    for (int i = 0; i < kSize; ++i) in.last<T>(kSize)[i] = static_cast<T>(i + 1);
    T* to = out.last<T>(kSize + misalignment);
    Vec<T>::load(in.last<T>(kSize)).store(to);
    for (int i = 0; i < kSize; ++i) EXPECT_EQ(to[i], i + 1);
    std::vector<bool> written(out.size());
    std::fill(written.begin(), written.begin() + kSize * static_cast<int>(sizeof(T)), true);
    EXPECT_TRUE(out.untouched_except(written)) << misalignment;
  }
}

TYPED_TEST(VecTest, FillIotaAndSum) {
  using T = TypeParam;
  constexpr int kSize = Vec<T>::kSize;
  T filled[kSize], counted[kSize];
  Vec<T>::fill(T(2.5)).store(filled);
  Vec<T>::iota().store(counted);
  for (int i = 0; i < kSize; ++i) {
    EXPECT_EQ(filled[i], T(2.5));
    EXPECT_EQ(counted[i], T(i));
  }
  EXPECT_EQ(sum_lanes(Vec<T>::iota()), T(kSize * (kSize - 1) / 2));
  T ordered[kSize] = {std::ldexp(T(1), 80), 1};  // in another order the 1 is lost
  ordered[kSize / 2] = -ordered[0];
  EXPECT_EQ(sum_lanes(Vec<T>::load(ordered)), T(1));
  for (int i = 0; i < kSize; ++i) {
    T largest[kSize];
    std::fill_n(largest, kSize, -kInfinity<T>);
    EXPECT_EQ(max_lanes(Vec<T>::load(largest)), -kInfinity<T>);
    largest[i] = T(-3);
    EXPECT_EQ(max_lanes(Vec<T>::load(largest)), T(-3));
  }
}

TYPED_TEST(VecTest, StreamsWhatItHolds) {
  using T = TypeParam;
  alignas(64) T values[Vec<T>::kSize], streamed[Vec<T>::kSize];
  for (int i = 0; i < Vec<T>::kSize; ++i) values[i] = T(i) + T(0.5);
  Vec<T>::load(values).stream(streamed);
  finish_streams();
  for (int i = 0; i < Vec<T>::kSize; ++i) EXPECT_EQ(streamed[i], values[i]);
}

TYPED_TEST(VecTest, Arithmetic) {
  using T = TypeParam;
  this->expect_lanes([](auto a, auto b, auto) { return a + b; }, [](T a, T b, T) { return a + b; });
  this->expect_lanes([](auto a, auto b, auto) { return a - b; }, [](T a, T b, T) { return a - b; });
  this->expect_lanes([](auto a, auto b, auto) { return a * b; }, [](T a, T b, T) { return a * b; });
  this->expect_lanes([](auto a, auto b, auto c) { return fma(a, b, c); },
                     [](T a, T b, T c) { return std::fma(a, b, c); });
  // Fused: the product is not rounded.
  const T x = 1 + std::numeric_limits<T>::epsilon();
  T fused[Vec<T>::kSize];
  fma(Vec<T>::fill(x), Vec<T>::fill(x), Vec<T>::fill(-x * x)).store(fused);
  EXPECT_EQ(fused[0], std::fma(x, x, -x * x));
  EXPECT_NE(fused[0], T(0));
}

// Forward and backward compute the same score in different places, so the compiler must not fuse
// one of them: this program has to be built with -ffp-contract=off, as the kernels are.
TYPED_TEST(VecTest, OperatorsAreNotFused) {
  using T = TypeParam;
  volatile T x = 1 + std::numeric_limits<T>::epsilon();  // the compiler cannot know what it holds
  volatile T product = x * x;
  T rest[Vec<T>::kSize];
  (Vec<T>::fill(x) * Vec<T>::fill(x) - Vec<T>::fill(product)).store(rest);
  EXPECT_EQ(rest[0], T(0));
}

TYPED_TEST(VecTest, LargerAndSmallerGiveTheSecondWhereEitherIsNan) {
  using T = TypeParam;
  this->expect_lanes([](auto a, auto b, auto) { return max(a, b); },
                     [](T a, T b, T) { return a > b ? a : b; });
  this->expect_lanes([](auto a, auto b, auto) { return min(a, b); },
                     [](T a, T b, T) { return a < b ? a : b; });
}

TYPED_TEST(VecTest, Selection) {
  using T = TypeParam;
  this->expect_lanes([](auto a, auto b, auto c) { return if_equal(a, b, c, b); },
                     [](T a, T b, T c) { return a == b ? c : b; });
  this->expect_lanes([](auto a, auto b, auto c) { return if_less(a, b, c, a); },
                     [](T a, T b, T c) { return a < b ? c : a; });
  this->for_all_triples([](const auto& a, const auto& b, const auto&) {
    uint32_t expected = 0;
    for (int i = 0; i < Vec<T>::kSize; ++i) expected |= uint32_t{a[i] == b[i]} << i;
    ASSERT_EQ(equal_lanes(Vec<T>::load(a.data()), Vec<T>::load(b.data())), expected);
  });
}

TYPED_TEST(VecTest, PowersOfTwo) {
  using T = TypeParam;
  using Limits = std::numeric_limits<T>;
  for (int n = Limits::min_exponent - 2; n < Limits::max_exponent; ++n) {
    T result[Vec<T>::kSize];
    power_of_two(Vec<T>::fill(T(n) + kShifter<T>)).store(result);
    ASSERT_EQ(result[0], n < Limits::min_exponent - 1 ? T(0) : std::ldexp(T(1), n)) << n;
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
