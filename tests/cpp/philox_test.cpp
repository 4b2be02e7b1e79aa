// The random numbers of dropout: published answers, where they lie, and what the threshold makes of
// them.
#include "attention/philox.h"

#include <gtest/gtest.h>

#include <cmath>

namespace torch_ext {
namespace {

void expect_words(const PhiloxWords& counter, uint32_t key0, uint32_t key1,
                  const PhiloxWords& want) {
  const PhiloxWords got = philox(counter, key0, key1);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(got.word[i], want.word[i]) << "word " << i;
}

// The known answers that the authors publish for Philox4x32-10.
TEST(PhiloxTest, KnownAnswers) {
  constexpr uint32_t kOnes = 0xffffffff;
  expect_words({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect_words({{kOnes, kOnes, kOnes, kOnes}}, kOnes, kOnes,
               {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect_words({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
               {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

// Whether `number` is the number of a position: it is kept up to this threshold and no further.
void expect_number(uint64_t seed, int64_t head, int64_t query, int64_t key, uint32_t number) {
  EXPECT_TRUE(dropout_keeps(seed, head, query, key, number)) << "key " << key;
  EXPECT_FALSE(dropout_keeps(seed, head, query, key, number + 1)) << "key " << key;
}

// The same answers, found at the positions that the layout of counter and key gives them.
TEST(PhiloxTest, HeadQueryKeyAndSeedAreTheCounterAndTheKey) {
  const uint32_t zero[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const uint32_t pi[] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  for (int64_t i = 0; i < 4; ++i) {
    expect_number(0, 0, 0, i, zero[i]);
    expect_number(0x299f31d0a4093822, 0x13198a2e, 0x03707344243f6a88, int64_t{4} * 0x85a308d3 + i,
                  pi[i]);
  }
}

TEST(PhiloxTest, KeysBeyond32BitsHaveTheirOwnNumbers) {
  const PhiloxWords near = dropout_counter(1, 2, 3), far = dropout_counter(1, 2, (5ll << 32) + 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(near.word[i], far.word[i]);
  EXPECT_EQ(near.word[3], 0u);
  EXPECT_EQ(far.word[3], 5u << 16);
}

TEST(PhiloxTest, ThresholdIsTheProbabilityInStepsOf2ToTheMinus32) {
  EXPECT_EQ(dropout_threshold(0), 0u);
  EXPECT_EQ(dropout_threshold(0.25), 0x40000000u);
  EXPECT_EQ(dropout_threshold(0.5), 0x80000000u);
  EXPECT_EQ(dropout_threshold(0x1p-32), 1u);
  EXPECT_EQ(dropout_threshold(0x1.8p-33), 1u);  // rounded to the nearest step
  EXPECT_EQ(dropout_threshold(0x1p-34), 0u);
  EXPECT_EQ(dropout_threshold(1 - 0x1p-32), 0xffffffffu);
  EXPECT_EQ(dropout_threshold(1 - 0x1p-53), 0xffffffffu);
}

// Within five standard deviations, for single weights and for pairs of neighbours in each
// direction: they are independent.
TEST(PhiloxTest, KeepsOneMinusPOfTheWeightsAndOfPairsTheSquare) {
  constexpr int64_t kQueries = 128, kKeys = 512;
  constexpr double kCount = kQueries * kKeys;
  for (const double p : {0.1, 0.5, 0.9}) {
    const uint32_t threshold = dropout_threshold(p);
    const auto keeps = [&](uint64_t seed, int64_t head, int64_t i, int64_t j) {
      return dropout_keeps(seed, head, i, j, threshold);
    };
    double single = 0, key_pair = 0, query_pair = 0, head_pair = 0, seed_pair = 0;
    for (int64_t i = 0; i < kQueries; ++i)
      for (int64_t j = 0; j < kKeys; ++j) {
        if (!keeps(7, 0, i, j)) continue;
        single += 1;
        key_pair += keeps(7, 0, i, j + 1);
        query_pair += keeps(7, 0, i + 1, j);
        head_pair += keeps(7, 1, i, j);
        seed_pair += keeps(8, 0, i, j);
      }
    const auto expect_share = [&](double count, double share) {
      EXPECT_NEAR(count / kCount, share, 5 * std::sqrt(share * (1 - share) / kCount)) << p;
    };
    expect_share(single, 1 - p);
    for (const double pairs : {key_pair, query_pair, head_pair, seed_pair})
      expect_share(pairs, (1 - p) * (1 - p));
  }
}

}  // namespace
}  // namespace torch_ext
