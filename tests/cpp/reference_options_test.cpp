// Every option of the reference where the answer is known by heart. With queries of 0 all scores
// are equal and the output is the mean of the visible values; value j is j + 1.
#include <gtest/gtest.h>

#include <vector>

#include "attention/philox.h"
#include "attention/reference.h"
#include "attention_case.h"

namespace torch_ext::test {
namespace {

Options float64(const Options& options = {}) {
  Options o = options;
  o.dtype = DType::Float64;
  return o;
}

// One number per key and row: D = E = 1.
Case counting_case(int64_t n, int64_t m, const Options& options, int64_t heads = 1) {
  Case c({1, heads, heads, n, m, 1, 1}, float64(options));
  c.query.fill([] { return 0; });
  c.value.for_each([&](int64_t b, int64_t h, int64_t j, int64_t e) {
    c.value.set(b, h, j, e, static_cast<double>(j + 1));
  });
  c.grad_output.fill([] { return 1; });
  c.grad_logsumexp.fill([] { return 0; });
  return c;
}

std::vector<double> rows(const Tensor& t) {
  std::vector<double> all;
  t.for_each([&](auto... at) { all.push_back(t.get(at...)); });
  return all;
}

void expect_rows(const Tensor& got, const std::vector<double>& want) {
  const std::vector<double> all = rows(got);
  ASSERT_EQ(all.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isfinite(want[i]))
      EXPECT_NEAR(all[i], want[i], 1e-14) << "row " << i;
    else
      EXPECT_EQ(all[i], want[i]) << "row " << i;
  }
}

TEST(ReferenceOptionsTest, WindowsCountFromTheKeyBesideTheQuery) {
  Options o;
  o.left = o.right = 1;
  Case top_left = counting_case(3, 5, o);
  expect_rows(top_left.run(reference_forward)[0], {1.5, 2, 3});
  o.bottom_right = true;
  Case bottom_right = counting_case(3, 5, o);
  expect_rows(bottom_right.run(reference_forward)[0], {3, 4, 4.5});
  o.left = 0;
  o.right = kUnlimited;
  Case ahead = counting_case(3, 5, o);
  expect_rows(ahead.run(reference_forward)[0], {4, 4.5, 5});
  o.left = 1;
  o.right = 0;
  Case more_queries = counting_case(4, 2, o);
  const auto results = more_queries.run(reference_forward);
  expect_rows(results[0], {0, 0, 1, 1.5});
  expect_rows(results[1], {-kInf, -kInf, 0, std::log(2)});
}

TEST(ReferenceOptionsTest, CausalIsAWindowWithoutAFuture) {
  Options o;
  o.is_causal = true;
  Case top_left = counting_case(3, 5, o);
  expect_rows(top_left.run(reference_forward)[0], {1, 1.5, 2});
  o.bottom_right = true;
  Case bottom_right = counting_case(3, 5, o);
  expect_rows(bottom_right.run(reference_forward)[0], {2, 2.5, 3});
}

TEST(ReferenceOptionsTest, SoftcapSaturates) {
  Options o;
  o.softcap = 2;
  o.scale = 1;
  Case c = counting_case(1, 2, o);
  c.query.set(0, 0, 0, 0, 1);
  c.key.set(0, 0, 0, 0, 1e4);
  c.key.set(0, 0, 1, 0, -1e4);
  const auto forward = c.run(reference_forward);
  const double first = std::exp(2), second = std::exp(-2);
  expect_rows(forward[0], {(first + 2 * second) / (first + second)});
  expect_rows(forward[1], {std::log(first + second)});
  expect_rows(c.run(reference_backward)[0], {0});
}

// Slope log 2 halves the weight with every step.
TEST(ReferenceOptionsTest, SlopesPenaliseTheDistance) {
  for (const bool bottom_right : {false, true}) {
    Options o;
    o.slopes = "H";
    o.bottom_right = bottom_right;
    Case c = counting_case(1, 3, o);
    c.slopes.set(0, 0, 0, 0, std::log(2));
    const auto forward = c.run(reference_forward);
    expect_rows(forward[0], {bottom_right ? (1 + 4 + 12) / 7. : (4 + 4 + 3) / 7.});
    expect_rows(forward[1], {std::log(1.75)});
    // -rowsum(P∘(V - O)∘distance)
    const double o_row = rows(forward[0])[0];
    const double want = bottom_right ? 2 * (1 - o_row) / 7 + 2 * (2 - o_row) / 7
                                     : 2 * (2 - o_row) / 7 + 2 * (3 - o_row) / 7;
    expect_rows(c.run(reference_backward)[4], {-want});
  }
}

TEST(ReferenceOptionsTest, SinkIsOneMoreKeyOfValueZero) {
  Options o;
  o.sink = "H";
  Case c = counting_case(1, 2, o);
  c.sink.set(0, 0, 0, 0, std::log(2));
  c.direction.sink.set(0, 0, 0, 0, 1);
  for (Tensor* t : {&c.direction.query, &c.direction.key, &c.direction.value})
    t->fill([] { return 0; });
  const auto forward = c.run(reference_forward);
  expect_rows(forward[0], {0.75});
  expect_rows(forward[1], {std::log(4)});
  expect_rows(c.run(reference_backward)[5], {-0.5 * 0.75});
  const auto tangents = c.run(reference_tangent);
  expect_rows(tangents[0], {-0.5 * 0.75});
  expect_rows(tangents[1], {0.5});
  // d²/da² of 3 / (2 + eᵃ) at eᵃ = 2
  expect_rows(c.run(reference_second_order)[5], {0});
}

TEST(ReferenceOptionsTest, WithNothingToSeeTheSinkIsAll) {
  Options o;
  o.sink = "H";
  for (const int64_t m : {0, 3}) {
    o.mask = m > 0 ? "M" : "";
    Case c = counting_case(2, m, o);
    if (c.mask) c.mask.fill([] { return 0; });
    c.sink.set(0, 0, 0, 0, -7.25);
    c.grad_logsumexp.fill([] { return 3; });
    c.direction.sink.set(0, 0, 0, 0, 5);
    const auto forward = c.run(reference_forward);
    expect_rows(forward[0], {0, 0});
    expect_rows(forward[1], {-7.25, -7.25});
    expect_rows(forward[2], {0, 0});
    expect_rows(c.run(reference_backward)[5], {6});
    const auto second = c.run(reference_second_order);
    expect_rows(second[5], {0});
    expect_rows(second[6], {0, 0});
    expect_rows(second[7], {5, 5});
  }
}

TEST(ReferenceOptionsTest, ASinkOfMinusInfinityIsNone) {
  Options o;
  o.left = 0;
  o.right = 0;
  o.sink = "H";
  Case with = counting_case(4, 3, o);  // the last query sees nothing
  with.sink.fill([] { return -kInf; });
  with.direction.sink.fill([] { return kNan; });
  with.grad_output.set(0, 0, 1, 0, kInf);
  Case without = with;
  without.sink = without.direction.sink = without.grad.sink = Tensor();
  const auto expect_same = [&](auto op) {
    const auto got = with.run(op), want = without.run(op);
    for (size_t i = 0; i < want.size(); ++i) {
      if (want[i]) {
        EXPECT_EQ(got[i].bytes(), want[i].bytes()) << i;
      }
    }
    return got;
  };
  expect_same(reference_forward);
  expect_rows(expect_same(reference_backward)[5], {0});
  expect_same(reference_tangent);
  expect_rows(expect_same(reference_second_order)[5], {0});
}

TEST(ReferenceOptionsTest, ARowOfMinusInfinityIsEmpty) {
  Case c = counting_case(2, 3, {});
  c.query.fill([] { return 1; });
  c.key.fill([] { return -kInf; });
  const auto forward = c.run(reference_forward);
  expect_rows(forward[0], {0, 0});
  expect_rows(forward[1], {-kInf, -kInf});
  expect_rows(c.run(reference_backward)[0], {0, 0});
  expect_rows(c.run(reference_tangent)[0], {0, 0});
  expect_rows(c.run(reference_second_order)[0], {0, 0});
}

TEST(ReferenceOptionsTest, DropoutScalesWhatItKeeps) {
  Options o;
  o.dropout_p = 0.75;
  Case c = counting_case(2, 9, o, 2);
  c.seed.set(0, 0, 0, 0, -12345);
  const auto forward = c.run(reference_forward), gradients = c.run(reference_backward);
  for (int64_t h = 0; h < 2; ++h) {
    std::vector<double> grad_value(9);
    for (int64_t i = 0; i < 2; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < 9; ++j) {
        if (!dropout_keeps(static_cast<uint64_t>(-12345), h, i, j, 0xc0000000)) continue;
        sum += static_cast<double>(j + 1);
        grad_value[j] += 4 / 9.;
      }
      EXPECT_NEAR(forward[0].get(0, h, i, 0), 4 * sum / 9, 1e-14);
      EXPECT_NEAR(forward[1].get(0, h, i, 0), std::log(9), 1e-14);
    }
    for (int64_t j = 0; j < 9; ++j) EXPECT_NEAR(gradients[2].get(0, h, j, 0), grad_value[j], 1e-14);
  }
}

// Heads count from 0 in every batch element, so equal seeds give equal bits.
TEST(ReferenceOptionsTest, DropoutKnowsTheSeedAndNotThePlaceInTheBatch) {
  Options o;
  o.dropout_p = 0.5;
  Case c({4, 3, 1, 5, 16, 2, 1}, float64(o));
  c.query.fill([] { return 0; });
  c.value.fill([] { return 1; });
  for (int64_t b = 0; b < 4; ++b) c.seed.set(b, 0, 0, 0, b == 2 ? 0x1p40 : 0);
  for (const bool split_batch : {false, true}) {
    c.options.split_batch = split_batch;
    const Tensor output = c.run(reference_forward)[0];
    int64_t other = 0;
    output.for_each([&](int64_t b, int64_t h, int64_t i, int64_t e) {
      const bool is_same = output.get(b, h, i, e) == output.get(0, h, i, e);
      other += !is_same;
      EXPECT_TRUE(is_same || b == 2);
    });
    EXPECT_GT(other, 0);
  }
}

}  // namespace
}  // namespace torch_ext::test
