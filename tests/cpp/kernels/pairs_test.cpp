// Tiles of weights rounded to bfloat16 and laid out in pairs, and the arithmetic of pairs.
#include "cpu/kernels/tile/pairs.h"

#include <gtest/gtest.h>

#include "elements.h"

#ifdef __AVX512BF16__

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Every bfloat16 that is no denormal, the ties between neighbours, and the floats beside the ties.
std::vector<float> numbers_to_round() {
  std::vector<float> x;
  for (uint32_t code = 0; code <= 0xff80; ++code)
    for (const uint32_t low : {0x0000u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      if (code % 0x8000 == 0 ? low == 0 : code % 0x8000 >= 0x80 && code % 0x8000 <= 0x7f7f)
        x.push_back(bits_to_float(code << 16 | low));
  x.insert(x.end(), {kInfinity<float>, -kInfinity<float>, kNan});
  return x;
}

double rounded(float x) { return test::decode_bfloat16(test::encode16(static_cast<double>(x), 8)); }

TEST(PairsTest, FactorsOverKeysAreRoundedPairsOfKeys) {
  const std::vector<float> numbers = numbers_to_round();
  size_t next = 0;
  test::FencedMemory memory(1 << 16), out(1 << 16);
  for (int repeat = 0; repeat < 200; ++repeat)
    for (int64_t keys = 1; keys <= 9; ++keys) {
      const int64_t width = 16 * (1 + repeat % 5);
      float* tile = memory.last<float>(keys * width);  // reading further ends the test
      for (int64_t e = 0; e < keys * width; ++e) tile[e] = numbers[next++ % numbers.size()];
      const auto factor =
          factor_over_keys<Pair>(tile, keys, width, out.last<Pair>(elements<Pair>(keys) * width));
      for (int64_t i = 0; i < width; ++i)
        for (int64_t j = 0; j < keys + keys % 2; ++j) {
          const Pair pair = factor.data[i * factor.row + j / 2 * factor.depth];
          const double want = j < keys ? rounded(tile[j * width + i]) : 0;
          ASSERT_TRUE(test::same(static_cast<double>(term_of(pair, j % 2)), want))
              << "key " << j << " of " << keys << ", query " << i << ": " << want;
        }
    }
  EXPECT_GT(next, numbers.size());
}

TEST(PairsTest, FactorsOverQueriesAreRoundedPairsOfQueries) {
  const std::vector<float> numbers = numbers_to_round();
  size_t next = 0;
  test::FencedMemory memory(1 << 16), out(1 << 16);
  for (int repeat = 0; repeat < 20; ++repeat)
    for (int64_t queries = 1; queries <= 80; ++queries) {
      const int64_t width = round_up(queries, 16), keys = 1 + repeat % 7;
      float* tile = memory.last<float>(keys * width);
      for (int64_t e = 0; e < keys * width; ++e)  // what lies beyond the queries may be anything
        tile[e] = e % width < queries ? numbers[next++ % numbers.size()] : kNan;
      const auto factor =
          factor_over_queries<Pair>(tile, keys, queries, width, out.last<Pair>(keys * width / 2));
      for (int64_t j = 0; j < keys; ++j)
        for (int64_t i = 0; i < queries + queries % 2; ++i) {
          const Pair pair = factor.data[j * factor.row + i / 2 * factor.depth];
          const double want = i < queries ? rounded(tile[j * width + i]) : 0;
          ASSERT_TRUE(test::same(static_cast<double>(term_of(pair, i % 2)), want))
              << "key " << j << ", query " << i << " of " << queries << ": " << want;
        }
    }
  EXPECT_GT(next, 20000u);
}

TEST(PairsTest, AZeroFactorHidesTheOther) {
  const auto lane = [](Pair a, Pair b) {
    return sum_lanes(fma_unless_zero(Vec<Pair>::fill(a), Vec<Pair>::fill(b), Vec<float>::fill(3)));
  };
  const float nan[] = {kNan, kNan}, one[] = {1, 2}, zero[] = {0, -0.f}, half[] = {0, 4};
  const auto pair = [](const float* terms) { return Terms<Pair>::element(terms, 1); };
  EXPECT_EQ(lane(pair(nan), pair(zero)), 16 * 3);
  EXPECT_EQ(lane(pair(one), pair(half)), 16 * (3 + 8));
  EXPECT_EQ(lane(pair(half), pair(one)), 16 * (3 + 8));
  EXPECT_TRUE(std::isnan(lane(pair(nan), pair(one))));
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE

#endif
