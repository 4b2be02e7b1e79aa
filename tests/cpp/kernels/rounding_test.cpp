// Conversion to and from the 16-bit formats, exhaustively: every code, every tie and its two
// neighbours.
#include <gtest/gtest.h>

#include "../helpers.h"
#include "cpu/kernels/tile/pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

struct BFloat16Format {
  using S = BFloat16;
  static constexpr DType kDType = DType::BFloat16;
  static constexpr uint16_t kInfinityCode = 0x7f80;
  static double decode(uint16_t bits) { return test::decode_bfloat16(bits); }
};
struct Float16Format {
  using S = Float16;
  static constexpr DType kDType = DType::Float16;
  static constexpr uint16_t kInfinityCode = 0x7c00;
  static double decode(uint16_t bits) { return test::decode_float16(bits); }
};

template <class Format>
class RoundingTest : public testing::Test {
 protected:
  // Rounds one by one and a row at a time: the compiler vectorises the latter.
  static std::vector<uint16_t> rounded(const std::vector<float>& x) {
    const auto count = static_cast<int64_t>(x.size());
    std::vector<typename Format::S> row(x.size());
    Operand out;
    out.data = row.data();
    out.dtype = Format::kDType;
    out.row_stride = count;
    out.col_stride = 1;
    write_rows<float>(x.data(), count, 1, count, 1.f, out, 0, 0);
    std::vector<uint16_t> codes;
    for (size_t i = 0; i < x.size(); ++i) {
      typename Format::S one;
      narrow(x[i], &one);
      EXPECT_EQ(one.bits, row[i].bits) << x[i];
      codes.push_back(one.bits);
    }
    return codes;
  }
};
using Formats = testing::Types<BFloat16Format, Float16Format>;
TYPED_TEST_SUITE(RoundingTest, Formats);

TYPED_TEST(RoundingTest, EveryCodeWidensToItsValueAndBack) {
  std::vector<float> wide;
  for (int code = 0; code < 65536; ++code) {
    const typename TypeParam::S stored{static_cast<uint16_t>(code)};
    wide.push_back(widen<float>(stored));
    ASSERT_TRUE(test::same(wide.back(), TypeParam::decode(stored.bits))) << code;
    ASSERT_EQ(std::signbit(wide.back()), code >= 0x8000) << code;
  }
  const std::vector<uint16_t> back = this->rounded(wide);
  for (int code = 0; code < 65536; ++code) {
    ASSERT_TRUE(back[code] == code ||
                (std::isnan(wide[code]) && std::isnan(TypeParam::decode(back[code]))))
        << code;
  }
}

TYPED_TEST(RoundingTest, BetweenTwoCodesTheNearerWinsAndTheEvenOneATie) {
  std::vector<float> between;
  std::vector<uint16_t> expected;
  for (int sign = 0; sign <= 0x8000; sign += 0x8000)
    for (uint16_t code = 0; code + 1 < TypeParam::kInfinityCode; ++code) {
      const double tie =
          (TypeParam::decode(code) + TypeParam::decode(static_cast<uint16_t>(code + 1))) / 2;
      const auto middle = static_cast<float>(sign ? -tie : tie);
      ASSERT_EQ(std::fabs(middle), tie);
      between.insert(between.end(),
                     {std::nextafter(middle, 0.f), middle, std::nextafter(middle, 2 * middle)});
      const auto low = static_cast<uint16_t>(sign | code),
                 high = static_cast<uint16_t>(sign | (code + 1));
      expected.insert(expected.end(), {low, code % 2 == 0 ? low : high, high});
    }
  const std::vector<uint16_t> got = this->rounded(between);
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(got[i], expected[i]) << std::hexfloat << between[i];
}

TYPED_TEST(RoundingTest, OverflowsToInfinityFromTheTieOn) {
  const double largest = TypeParam::decode(TypeParam::kInfinityCode - 1);
  const double step = largest - TypeParam::decode(TypeParam::kInfinityCode - 2);
  const auto tie = static_cast<float>(largest + step / 2);
  const float inf = kInfinity<float>, most = std::numeric_limits<float>::max();
  const std::vector<uint16_t> got =
      this->rounded({std::nextafter(tie, 0.f), tie, most, inf, -tie, -inf});
  const uint16_t infinity = TypeParam::kInfinityCode, negative = infinity | 0x8000;
  EXPECT_EQ(got, (std::vector<uint16_t>{static_cast<uint16_t>(infinity - 1), infinity, infinity,
                                        infinity, negative, negative}));
}

TYPED_TEST(RoundingTest, NanStaysNanWhateverItsBits) {
  std::vector<float> nans;
  for (uint32_t fraction : {0x1u, 0x7fffu, 0x8000u, 0xffffu, 0x7fffffu, 0x400000u})
    for (uint32_t sign : {0u, 0x80000000u})
      nans.push_back(bits_to_float(sign | 0x7f800000u | fraction));
  for (uint16_t code : this->rounded(nans))
    EXPECT_TRUE(std::isnan(TypeParam::decode(code))) << std::hex << code;
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
