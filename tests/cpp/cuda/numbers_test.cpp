// The host's conversions: every code, every tie and its two neighbours.
#include "cuda/primitives/numbers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attention/reference_numbers.h"

namespace torch_ext::cuda {
namespace {

template <class E>
constexpr reference::Format16 kFormat = reference::kBFloat16;
template <>
constexpr reference::Format16 kFormat<Float16> = reference::kFloat16;

template <class E>
class Numbers : public testing::Test {
 protected:
  static uint16_t expected(float x) {
    return std::isnan(x) ? 0x7fff : kFormat<E>.encode(static_cast<double>(x));
  }
};
using Elements16 = testing::Types<BFloat16, Float16>;
TYPED_TEST_SUITE(Numbers, Elements16);

TYPED_TEST(Numbers, EveryCodeHasItsValue) {
  for (int code = 0; code < 65536; ++code) {
    const auto bits = static_cast<uint16_t>(code);
    const float x = to_float(TypeParam{bits});
    const double value = kFormat<TypeParam>.decode(bits);
    ASSERT_TRUE(x == value || (std::isnan(x) && std::isnan(value))) << code;
    ASSERT_EQ(std::signbit(x), code >= 0x8000) << code;
  }
}

TYPED_TEST(Numbers, RoundsToNearestAndTiesToEven) {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto check = [&](float x) {
    for (const float y : {x, std::nextafter(x, infinity), std::nextafter(x, -infinity)}) {
      ASSERT_EQ(from_float<TypeParam>(y).bits, this->expected(y)) << y;
    }
  };
  for (int code = 0; code < 65536; ++code) {
    const float x = to_float(TypeParam{static_cast<uint16_t>(code)});
    check(x);
    if ((code & 0x7fff) >= kFormat<TypeParam>.infinity()) continue;
    // Half way to the next code, which is infinity after the largest.
    const double ulp = std::ldexp(1., std::max(std::ilogb(x), 1 - kFormat<TypeParam>.bias()) -
                                          kFormat<TypeParam>.fraction_bits);
    check(static_cast<float>(x + (x < 0 ? -ulp : ulp) / 2));
  }
}

TYPED_TEST(Numbers, PackPutsTheFirstIntoTheLowerHalf) {
  EXPECT_EQ(pack<TypeParam>(1.f, -2.f),
            from_float<TypeParam>(1.f).bits | uint32_t{from_float<TypeParam>(-2.f).bits} << 16);
  EXPECT_NE(pack<TypeParam>(1.f, 0.f), pack<TypeParam>(0.f, 1.f));
}

TEST(NumbersOfOneKind, StayWhatTheyAre) {
  EXPECT_EQ(to_float(0.1f), 0.1f);
  EXPECT_EQ(to_float(0.1), 0.1);
  EXPECT_EQ(from_float<float>(0.1f), 0.1f);
  EXPECT_EQ(from_float<double>(0.1), 0.1);
}

TEST(Exp2Fast, FlushesSubnormalNumbers) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(exp2_fast(-infinity), 0.f);
  EXPECT_EQ(exp2_fast(infinity), infinity);
  EXPECT_TRUE(std::isnan(exp2_fast(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_EQ(exp2_fast(128.f), infinity);
  EXPECT_EQ(exp2_fast(-126.f), 0x1p-126f);
  EXPECT_EQ(exp2_fast(-126.5f), 0.f);
  EXPECT_EQ(exp2_fast(0x1p-140f), 1.f);
  for (float x = -20; x < 20; x += 0.37f) {
    EXPECT_NEAR(exp2_fast(x) / std::exp2(static_cast<double>(x)), 1, 1e-6) << x;
  }
}

}  // namespace
}  // namespace torch_ext::cuda
