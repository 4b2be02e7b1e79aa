// The exponential: at most 1 ulp wherever the result is a normal number, and the values the softmax
// relies on exactly. The hyperbolic tangent: at most 2 ulp.
#include <gtest/gtest.h>

#include "../helpers.h"
#include "cpu/kernels/primitives/exponential.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
T vector_exp(T x) {
  T lanes[Vec<T>::kSize];
  exp(Vec<T>::fill(x)).store(lanes);
  return lanes[0];
}

// |got - exact| in units of the last place of T at `exact`; Wide carries many more digits than T.
template <class T, class Wide>
double ulps(T got, Wide exact) {
  using Limits = std::numeric_limits<T>;
  if (exact > static_cast<Wide>(Limits::max())) return got >= Limits::max() * T(0.9999) ? 0 : 1e9;
  const int exponent =
      std::max(exact > 0 ? std::ilogb(exact) : Limits::min_exponent, Limits::min_exponent - 1);
  return static_cast<double>(std::fabs(static_cast<Wide>(got) - exact) /
                             std::ldexp(Wide(1), exponent - (Limits::digits - 1)));
}

// The largest error of exp over `count` numbers next(), which must not be NaN. What is no normal
// number may be 0.
template <class T, class Wide, class Next>
double largest_error(int64_t count, const Next& next) {
  double largest = 0;
  T x[Vec<T>::kSize], y[Vec<T>::kSize];
  for (int64_t i = 0; i < count; i += Vec<T>::kSize) {
    for (T& value : x) value = next();
    exp(Vec<T>::load(x)).store(y);
    for (int lane = 0; lane < Vec<T>::kSize; ++lane) {
      const Wide exact = std::exp(static_cast<Wide>(x[lane]));
      if (exact < static_cast<Wide>(std::numeric_limits<T>::min()) && y[lane] == 0) continue;
      const double error = ulps<T, Wide>(y[lane], exact);
      if (!(error <= largest)) largest = error;
      if (!(error <= 1)) {
        ADD_FAILURE() << "exp(" << x[lane] << ") = " << y[lane] << ", off by " << error << " ulp";
        return error;
      }
    }
  }
  return largest;
}

TEST(ExpTest, FloatIsWithinOneUlpOnEveryHundredthNumber) {
  uint32_t bits = 0;
  const double error = largest_error<float, double>((int64_t{1} << 32) / 101, [&] {
    float x;
    do {
      bits += 101;
      std::memcpy(&x, &bits, sizeof x);
    } while (std::isnan(x));
    return x;
  });
  EXPECT_LE(error, 1);
}

TEST(ExpTest, FloatIsWithinOneUlpOnAFineGrid) {
  float x = -106;
  EXPECT_LE((largest_error<float, double>(196 << 14, [&] { return x += 0x1p-14f; })), 1);
}

TEST(ExpTest, DoubleIsWithinOneUlp) {
  test::Random random(3);
  const auto largest = [&](int64_t count, double low, double high) {
    return largest_error<double, long double>(count, [&] { return random.uniform(low, high); });
  };
  EXPECT_LE(largest(2'000'000, -748, 712), 1);
  EXPECT_LE(largest(1'000'000, -1, 1), 1);
  EXPECT_LE(largest(200'000, -746, -708), 1);
  EXPECT_LE((largest_error<double, long double>(
                200'000,
                [&] {
                  return std::ldexp(random.uniform(-1, 1), static_cast<int>(-random.below(1070)));
                })),
            1);
}

template <class T>
class ExpSpecialTest : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ExpSpecialTest, Scalars);

TYPED_TEST(ExpSpecialTest, SpecialValues) {
  using T = TypeParam;
  using Limits = std::numeric_limits<T>;
  EXPECT_EQ(vector_exp<T>(0), T(1));
  EXPECT_EQ(vector_exp<T>(T(-0.0)), T(1));
  EXPECT_EQ(vector_exp(-Limits::infinity()), T(0));
  EXPECT_EQ(vector_exp(Limits::lowest()), T(0));
  EXPECT_GT(vector_exp(Limits::infinity()), Limits::max() * T(0.9999));
  EXPECT_EQ(vector_exp(Limits::max()), vector_exp(Limits::infinity()));
}

// Whatever their last bits are, from which a power of two is made.
TYPED_TEST(ExpSpecialTest, EveryNanStaysOne) {
  using T = TypeParam;
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  for (const T nan : {std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::quiet_NaN()})
    for (Bits payload = 0; payload < 1 << 12; ++payload) {
      Bits bits;
      std::memcpy(&bits, &nan, sizeof bits);
      bits |= payload % 2 == 0 ? payload : ~Bits{0} - payload;
      T x;
      std::memcpy(&x, &bits, sizeof x);
      ASSERT_TRUE(std::isnan(vector_exp(x))) << std::hex << bits;
    }
}

TYPED_TEST(ExpSpecialTest, SeveralVectorsAtOnceHaveTheBitsOfEachAlone) {
  using T = TypeParam;
  using V = Vec<T>;
  constexpr int kSize = V::kSize;
  test::Random random(6);
  T x[4 * kSize], alone[kSize], together[kSize];
  for (int repeat = 0; repeat < 100; ++repeat) {
    for (T& value : x) value = static_cast<T>(random.uniform(-100, 88));
    x[repeat % (4 * kSize)] =
        repeat % 2 == 0 ? std::numeric_limits<T>::quiet_NaN() : -std::numeric_limits<T>::infinity();
    V four[4];
    for (int i = 0; i < 4; ++i) four[i] = V::load(x + i * kSize);
    exp_without_overflow(four);
    for (int i = 0; i < 4; ++i) {
      exp(V::load(x + i * kSize)).store(alone);
      four[i].store(together);
      EXPECT_EQ(std::memcmp(alone, together, sizeof alone), 0) << repeat << " " << i;
    }
  }
}

TYPED_TEST(ExpSpecialTest, ReachesTheEndsOfTheRange) {
  using T = TypeParam;
  using Limits = std::numeric_limits<T>;
  const T smallest = std::log(Limits::min()), largest = std::log(Limits::max());
  const T above = std::nextafter(std::nextafter(smallest, T(0)), T(0));
  EXPECT_GE(vector_exp(above), Limits::min());
  EXPECT_LT(vector_exp(above), Limits::min() * T(1.001));
  EXPECT_EQ(vector_exp(smallest - T(0.5)), T(0));
  EXPECT_TRUE(std::isfinite(vector_exp(std::nextafter(largest, T(0)))));
  EXPECT_TRUE(std::isfinite(vector_exp(largest * 2)));
}

TYPED_TEST(ExpSpecialTest, TanhIsWithinTwoUlp) {
  using T = TypeParam;
  using Wide = std::conditional_t<sizeof(T) == 4, double, long double>;
  test::Random random(5);
  T x[Vec<T>::kSize], y[Vec<T>::kSize];
  double largest = 0;
  for (int repeat = 0; repeat < 100'000; ++repeat) {
    const double range = repeat % 3 == 0 ? 1 : repeat % 3 == 1 ? 25 : 1e-3;
    for (T& value : x) value = static_cast<T>(random.uniform(-range, range));
    tanh(Vec<T>::load(x)).store(y);
    for (int lane = 0; lane < Vec<T>::kSize; ++lane) {
      const Wide exact = std::tanh(static_cast<Wide>(x[lane]));
      largest = std::max(largest, ulps<T, Wide>(std::fabs(y[lane]), std::fabs(exact)));
      ASSERT_EQ(std::signbit(y[lane]), std::signbit(x[lane]));
    }
  }
  EXPECT_LE(largest, 2);
}

TYPED_TEST(ExpSpecialTest, TanhOfSpecialValues) {
  using T = TypeParam;
  using Limits = std::numeric_limits<T>;
  const auto value = [](T x) {
    T lanes[Vec<T>::kSize];
    tanh(Vec<T>::fill(x)).store(lanes);
    return lanes[0];
  };
  EXPECT_EQ(value(0), T(0));
  EXPECT_EQ(value(Limits::infinity()), T(1));
  EXPECT_EQ(value(-Limits::infinity()), T(-1));
  EXPECT_EQ(value(Limits::max()), T(1));
  EXPECT_EQ(value(Limits::denorm_min()), Limits::denorm_min());
  EXPECT_TRUE(std::isnan(value(Limits::quiet_NaN())));
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
