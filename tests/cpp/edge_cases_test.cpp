// What an implementation can get wrong although it agrees with the reference on ordinary numbers.
#include <gtest/gtest.h>

#include "attention/reference.h"
#include "compare.h"

namespace torch_ext::test {
namespace {

class EdgeCaseTest : public testing::TestWithParam<cpu::Implementation> {};

TEST_P(EdgeCaseTest, RowsThatSeeNothingAreZero) {
  Options options;
  options.mask = "NM";
  Case c({1, 2, 1, 70, 100, 5, 6}, options);
  for (int64_t j = 0; j < 100; ++j)
    for (const int64_t row : {0, 3, 69}) c.mask.set(0, 0, row, j, 0);
  const auto forward = c.run(GetParam().forward);
  const auto backward = c.run(GetParam().backward);
  const auto second_order = c.run(GetParam().second_order);
  const auto tangent = c.run(GetParam().tangent);
  for (int64_t h = 0; h < 2; ++h)
    for (const int64_t row : {0, 3, 69}) {
      EXPECT_EQ(tangent[1].get(0, h, row, 0), 0);
      EXPECT_EQ(forward[1].get(0, h, row, 0), -kInf);
      EXPECT_EQ(forward[2].get(0, h, row, 0), 0);
      for (int64_t e = 0; e < 6; ++e) {
        EXPECT_EQ(forward[0].get(0, h, row, e), 0);
        EXPECT_EQ(tangent[0].get(0, h, row, e), 0);
      }
      for (int64_t d = 0; d < 5; ++d) {
        EXPECT_EQ(backward[0].get(0, h, row, d), 0);
        EXPECT_EQ(second_order[0].get(0, h, row, d), 0);
      }
    }
  expect_agreement(c);
}

// logsumexp of 1024 keys biased by -1e9 is log(1024) above -1e9, which float32 cannot say; the
// residual can.
TEST_P(EdgeCaseTest, WeightsSumToOneUnderAHugeBias) {
  for (const DType dtype : {DType::Float32, DType::BFloat16, DType::Float64}) {
    Options options;
    options.dtype = dtype;
    options.bias = "M";
    options.wide = true;
    Case c({1, 1, 1, 1, 1024, 4, 1}, options);
    c.query.fill([] { return 0; });
    c.bias.fill([&] { return dtype == DType::Float64 ? -1e18 : -1e9; });
    c.grad_output.fill([] { return 1; });
    c.run(GetParam().forward);
    const Tensor grad_value = c.run(GetParam().backward)[2];  // the weights
    double sum = 0;
    grad_value.for_each([&](auto... at) { sum += grad_value.get(at...); });
    EXPECT_NEAR(sum, 1, 1e-5);
  }
}

// Scores of 1e13 and a scale that is no power of two: the distance from the maximum must not
// inherit the rounding of either.
TEST_P(EdgeCaseTest, WeightsOfHugeScoresAreThoseOfTheirDifferences) {
  constexpr int64_t kKeys = 200;
  for (const DType dtype : {DType::Float32, DType::BFloat16, DType::Float64})
    for (const int64_t queries : {1, 70}) {
      const double huge = dtype == DType::Float64 ? 0x1p200 : 0x1p20;
      Options options;
      options.dtype = dtype;
      options.scale = 0.3;
      Case c({1, 1, 1, queries, kKeys, 24, 3}, options);
      c.query.fill([&] { return huge; });
      c.grad_output.fill([] { return 1; });
      double mean = 0;
      for (int64_t j = 0; j < kKeys; ++j) {
        for (int64_t d = 0; d < 24; ++d) c.key.set(0, 0, j, d, j % 2 == 0 ? huge : -huge);
        if (j % 2 == 0) mean += 2 * c.value.get(0, 0, j, 1) / kKeys;
      }
      const Tensor output = c.run(GetParam().forward)[0];
      const Tensor grad_value = c.run(GetParam().backward)[2];
      const double tolerance = 4 * epsilon(dtype);
      for (int64_t i = 0; i < queries; ++i)
        EXPECT_NEAR(output.get(0, 0, i, 1), mean, tolerance) << i;
      for (int64_t j = 0; j < kKeys; ++j) {
        const double expected = j % 2 == 0 ? 2. * static_cast<double>(queries) / kKeys : 0;
        EXPECT_NEAR(grad_value.get(0, 0, j, 1), expected, tolerance) << j;
      }
    }
}

// The largest score comes last, so every earlier tile has to be scaled down.
TEST_P(EdgeCaseTest, RisingAndFallingScores) {
  for (const double slope : {0.5, -0.5, 3., 40.}) {
    Options options;
    options.bias = "M";
    Case c({1, 1, 1, 70, 300, 4, 5}, options);
    for (int64_t j = 0; j < 300; ++j) c.bias.set(0, 0, 0, j, slope * static_cast<double>(j));
    expect_agreement(c, 300 * std::fabs(slope));
  }
}

// Whether a tile may hold inf or NaN where it is hidden, in all four operators; the reference never
// reads it there.
TEST_P(EdgeCaseTest, HiddenInfinityAndNanReachNothing) {
  const auto expect_finite = [](const std::vector<Tensor>& results) {
    for (const Tensor& t : results)
      if (t) t.for_each([&](auto... at) { EXPECT_TRUE(std::isfinite(t.get(at...))); });
  };
  for (const double poison : {kInf, -kInf, kNan})
    for (const bool is_causal : {false, true}) {
      Options options;
      options.mask = "M";
      options.bias = is_causal ? "" : "BHNM";
      options.is_causal = is_causal;
      options.softcap = is_causal ? 2 : 0;
      options.sink = is_causal ? "" : "H";
      options.dropout_p = is_causal ? 0.2 : 0;
      Case c({1, 2, 1, 66, 130, 16, 16}, options);
      for (int64_t j = 0; j < 130; ++j) c.mask.set(0, 0, 0, j, j % 7 != 3);
      for (int64_t j = 3; j < 130; j += 14) {
        for (const int64_t column : {0, 15})
          for (Tensor* t : {&c.key, &c.value, &c.direction.key, &c.direction.value})
            t->set(0, 0, j, column, poison);
        if (c.bias) {
          c.bias.set(0, 0, 5, j, poison);
          c.direction.bias.set(0, 1, 7, j, poison);
        }
      }
      expect_agreement(c);
      expect_finite(c.run(GetParam().backward));
      expect_finite(c.run(GetParam().tangent));
      expect_finite(c.run(GetParam().second_order));
    }
}

TEST_P(EdgeCaseTest, InfinityAndNanOutsideTheWindowReachNothing) {
  for (const double poison : {kInf, kNan}) {
    Options options;
    options.left = 20;
    options.right = 3;
    options.bottom_right = true;
    Case c({1, 1, 1, 70, 300, 16, 16}, options);
    for (int64_t j = 0; j < 210; ++j)  // the first query sees keys 210 … 233
      for (Tensor* t : {&c.key, &c.value, &c.direction.key, &c.direction.value})
        t->set(0, 0, j, 3, poison);
    expect_agreement(c);
    const Tensor output = c.run(GetParam().forward)[0];
    output.for_each([&](auto... at) { EXPECT_TRUE(std::isfinite(output.get(at...))); });
  }
}

// The key after the last that any query sees, also where it is the other half of a pair of
// bfloat16.
TEST_P(EdgeCaseTest, InfinityAndNanInTheFirstHiddenKeyReachNothing) {
  for (const DType dtype : {DType::BFloat16, DType::Float32})
    for (const int64_t n : {1, 3, 30, 65, 97, 129})
      for (const int64_t right : {0, 1, 40}) {
        Options options;
        options.dtype = dtype;
        options.right = right;
        Case c({1, 1, 1, n, n + right + 3, 16, 16}, options);
        for (Tensor* t : {&c.key, &c.value, &c.direction.key, &c.direction.value})
          t->set(0, 0, n + right, 3, right ? kNan : kInf);
        expect_agreement(c);
        for (const auto& results : {c.run(GetParam().forward), c.run(GetParam().backward),
                                    c.run(GetParam().tangent), c.run(GetParam().second_order)})
          for (const Tensor& t : results)
            if (t) t.for_each([&](auto... at) { EXPECT_TRUE(std::isfinite(t.get(at...))); });
      }
}

// Weights of 0 do not carry inf and NaN of the values into an output that is 0.
TEST_P(EdgeCaseTest, RowsWhoseScoresAreAllMinusInfinityAreZero) {
  for (const DType dtype : {DType::BFloat16, DType::Float32})
    for (const int64_t n : {1, 20})
      for (const int64_t m : {2, 128, 300, 4096}) {
        Options options;
        options.dtype = dtype;
        Case c({1, 1, 1, n, m, 1, 16}, options);
        c.query.fill([] { return 1; });
        c.key.fill([] { return -kInf; });
        c.value.set(0, 0, 1, 3, kNan);
        const auto forward = c.run(GetParam().forward);
        forward[0].for_each([&](auto... at) { EXPECT_EQ(forward[0].get(at...), 0); });
        forward[1].for_each([&](auto... at) { EXPECT_EQ(forward[1].get(at...), -kInf); });
      }
}

TEST_P(EdgeCaseTest, VisibleInfinityAndNanReachWhatTheySay) {
  for (const double poison : {kInf, -kInf, kNan})
    for (const char* mask : {"", "NM"}) {
      Options options;
      options.mask = mask;
      Case c({1, 1, 1, 40, 110, 5, 16}, options);
      c.value.set(0, 0, 17, 2, poison);
      expect_agreement(c);
      c.key.set(0, 0, 50, 2, poison);
      expect_agreement(c);
    }
}

TEST_P(EdgeCaseTest, PoisonInTheLastKeysReachesOnlyTheQueriesThatSeeThem) {
  Options options;
  options.is_causal = true;
  Case c({1, 1, 1, 100, 100, 16, 16}, options);
  c.value.set(0, 0, 90, 3, kNan);
  const Tensor output = c.run(GetParam().forward)[0];
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_FALSE(std::isnan(output.get(0, 0, i, 2)));
    EXPECT_EQ(std::isnan(output.get(0, 0, i, 3)), i >= 90) << i;
  }
  c.key.set(0, 0, 90, 2, kNan);
  const auto forward = c.run(GetParam().forward);
  c.run(reference_forward);
  for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(std::isnan(forward[0].get(0, 0, i, 0)), i >= 90) << i;
  const Tensor grad_query = c.run(GetParam().backward)[0];
  for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(std::isnan(grad_query.get(0, 0, i, 0)), i >= 90) << i;
}

// The row's logsumexp is NaN, and so would be exp(-inf - logsumexp) for the keys it must not see.
TEST_P(EdgeCaseTest, PoisonInAQueryReachesOnlyItsRowAndTheKeysItSees) {
  for (const double poison : {kInf, kNan}) {
    Options options;
    options.is_causal = true;
    Case c({1, 1, 1, 100, 100, 16, 16}, options);
    c.query.set(0, 0, 40, 1, poison);
    c.run(GetParam().forward);
    const auto gradients = c.run(GetParam().backward);
    for (int64_t i = 0; i < 100; ++i) {
      EXPECT_EQ(std::isnan(c.output.get(0, 0, i, 0)), i == 40) << i;
      EXPECT_EQ(std::isnan(gradients[0].get(0, 0, i, 0)), i == 40) << i;
      EXPECT_EQ(std::isnan(gradients[1].get(0, 0, i, 0)), i <= 40) << i;
      EXPECT_EQ(std::isnan(gradients[2].get(0, 0, i, 0)), i <= 40) << i;
    }
  }
}

TEST_P(EdgeCaseTest, PoisonInGradOutputReachesOnlyItsRowAndTheKeysItSees) {
  for (const double poison : {kInf, -kInf, kNan}) {
    Options options;
    options.is_causal = true;
    Case c({1, 1, 1, 100, 100, 16, 16}, options);
    c.run(GetParam().forward);
    c.grad_output.set(0, 0, 40, 1, poison);
    const auto gradients = c.run(GetParam().backward);
    for (int64_t i = 0; i < 100; ++i) {
      EXPECT_EQ(std::isfinite(gradients[0].get(0, 0, i, 0)), i != 40) << i;
      EXPECT_EQ(std::isfinite(gradients[1].get(0, 0, i, 0)), i > 40) << i;
      EXPECT_EQ(std::isfinite(gradients[2].get(0, 0, i, 1)), i > 40) << i;
    }
  }
}

TEST_P(EdgeCaseTest, AbsentGradOutputIsZero) {
  Case c({1, 2, 1, 20, 30, 5, 6}, {});
  c.run(reference_forward);
  c.grad_output.fill([] { return 0; });
  const auto backward = c.run(GetParam().backward);
  const auto second_order = c.run(GetParam().second_order);
  c.grad_output = Tensor();
  expect_same_bits(c.run(GetParam().backward), backward);
  expect_same_bits(c.run(GetParam().second_order), second_order);
}

// The tangents are computed twice, by attention_tangent and by attention_second_order.
TEST_P(EdgeCaseTest, SecondOrderHasTheTangentsOfTangent) {
  Options options;
  options.bias = "NM";
  options.softcap = 3;
  options.sink = "H";
  options.dropout_p = 0.25;
  Case c({2, 2, 1, 70, 101, 5, 6}, options);
  c.run(GetParam().forward);
  const auto tangent = c.run(GetParam().tangent), second_order = c.run(GetParam().second_order);
  expect_close(second_order[6], tangent[0], "output_tangent", {32});
  expect_close(second_order[7], tangent[1], "logsumexp_tangent", {32});
}

INSTANTIATE_TEST_SUITE_P(Levels, EdgeCaseTest, testing::ValuesIn(fast_implementations()),
                         [](const auto& info) { return std::string(info.param.name); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(EdgeCaseTest);

}  // namespace
}  // namespace torch_ext::test
