// Whether an implementation's results are the reference's, up to rounding.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "attention/reference.h"
#include "attention_case.h"
#include "cpu/implementations.h"

namespace torch_ext::cpu {

inline void PrintTo(const Implementation& implementation, std::ostream* out) {
  *out << implementation.name;
}

}  // namespace torch_ext::cpu

namespace torch_ext::test {

// What is compared with the reference, in each test program something else: the levels of this
// machine's processor (levels.cpp), or the CUDA kernels run on the host (cuda/kernels_on_host.cpp).
std::vector<cpu::Implementation> fast_implementations();
// Whether weights are rounded to 16 bits before they are multiplied.
bool rounds_weights(const cpu::Implementation& implementation, DType dtype);
// In a program in which cases take long: of each test the first cases run, unless they are large,
// and of all cases one in `stride`.
struct Sampling {
  int64_t first, scores, stride;
};
Sampling sampling();

// Whether the next case of the running test, with that many scores, is to be run.
inline bool runs_next_case(const Shape& shape) {
  static const testing::TestInfo* test = nullptr;
  static int64_t count = 0;
  const auto* running = testing::UnitTest::GetInstance()->current_test_info();
  if (running != test) count = 0;
  test = running;
  const int64_t n = count++, scores = shape.batch * shape.heads * shape.n * shape.m;
  return (n < sampling().first && scores <= sampling().scores) || n % sampling().stride == 0;
}

struct Tolerance {
  double ulps = 64;          // of the accumulation type, for numbers as large as the largest
  double share = 0;          // of the largest
  bool nan_for_inf = false;  // whether NaN will do where inf is expected
};

// Both round once to the type of the tensor; what is left is the accumulation's error. What is not
// finite must be so in both, in the same way.
inline void expect_close(const Tensor& got, const Tensor& want, const char* name,
                         const Tolerance& allowed = {}) {
  if (!want) return;
  double largest = 1;
  const auto grow = [&](auto... at) {
    if (std::isfinite(want.get(at...))) largest = std::max(largest, std::fabs(want.get(at...)));
  };
  want.for_each(grow);
  const double tolerance =
      (epsilon(statistics_dtype(want.dtype())) * allowed.ulps + allowed.share) * largest;
  int64_t wrong = 0;
  want.for_each([&](int64_t b, int64_t h, int64_t r, int64_t c) {
    const double x = got.get(b, h, r, c), y = want.get(b, h, r, c);
    const bool is_close = std::isfinite(y)
                              ? std::fabs(x - y) <= epsilon(want.dtype()) * std::fabs(y) + tolerance
                              : same(x, y) || (allowed.nan_for_inf && std::isnan(x));
    if (is_close) return;
    if (wrong++ == 0)
      ADD_FAILURE() << name << "[" << b << ", " << h << ", " << r << ", " << c << "] = " << x
                    << ", expected " << y;
  });
  EXPECT_EQ(wrong, 0) << "elements of " << name << " are wrong";
  EXPECT_TRUE(got.gaps_untouched()) << "written outside the elements of " << name;
}

// logsumexp + residual: together they carry more digits than either.
inline void expect_close_logsumexp(const std::vector<Tensor>& got, const std::vector<Tensor>& want,
                                   double ulps) {
  expect_close(got[1], want[1], "logsumexp", {8});
  want[1].for_each([&](int64_t b, int64_t h, int64_t r, int64_t c) {
    const double x = got[1].get(b, h, r, c), residual = got[2].get(b, h, r, c);
    const double rest =
        (want[1].get(b, h, r, c) - x) + want[2].get(b, h, r, c);  // what the residual should be
    // From the sum of exponentials, whose logarithm is exact to a few ulp of 1.
    const double tolerance = ulps * epsilon(want[1].dtype());
    EXPECT_NEAR(residual, std::isfinite(x) ? rest : 0, tolerance)
        << "logsumexp_residual at " << b << " " << h << " " << r;
  });
  EXPECT_TRUE(got[1].gaps_untouched() && got[2].gaps_untouched());
}

inline void expect_all_close(std::span<const Tensor> got, std::span<const Tensor> want,
                             std::span<const char* const> names, const Tolerance& allowed) {
  ASSERT_EQ(got.size(), names.size());
  ASSERT_EQ(want.size(), names.size());
  for (size_t i = 0; i < want.size(); ++i) expect_close(got[i], want[i], names[i], allowed);
}

// All four operators of every implementation against the reference. A score is rounded relative to
// its own size, which its exponential then has as an absolute error: give `largest_score` where
// scores are large.
inline void expect_agreement(Case& c, double largest_score = 1) {
  constexpr const char* kGradients[] = {"grad_query", "grad_key",    "grad_value",
                                        "grad_bias",  "grad_slopes", "grad_sink"};
  constexpr const char* kTangents[] = {"output_tangent", "logsumexp_tangent"};
  // The kernels subtract mu∘O, with the output as it was rounded; inf - inf is NaN.
  const DType dtype = c.options.dtype;
  const double rounding = dtype == statistics_dtype(dtype) ? 0 : epsilon(dtype);
  const Tolerance for_tangents{256 * largest_score, rounding, true};

  const auto forward = c.run(reference_forward), backward = c.run(reference_backward);
  const auto tangent = c.run(reference_tangent), second_order = c.run(reference_second_order);
  for (const cpu::Implementation& level : fast_implementations()) {
    SCOPED_TRACE(std::string(level.name) + ": " + describe(c.shape, c.options));
    const double of_weights = rounds_weights(level, dtype) ? epsilon(dtype) : 0;
    const Tolerance for_forward{64 * largest_score, of_weights},
        for_gradients{256 * largest_score, of_weights},
        for_second_gradients{1024 * largest_score, of_weights};
    const auto got = c.run(level.forward);
    expect_close(got[0], forward[0], "output", for_forward);
    expect_close_logsumexp(got, forward, for_forward.ulps);
    // The others start from the same numbers as the reference.
    c.output = forward[0];
    c.logsumexp = forward[1];
    c.logsumexp_residual = forward[2];
    expect_all_close(c.run(level.backward), backward, kGradients, for_gradients);
    expect_all_close(c.run(level.tangent), tangent, kTangents, for_tangents);
    SCOPED_TRACE("second order");
    const auto second = c.run(level.second_order);
    expect_all_close(std::span(second).first(6), std::span(second_order).first(6), kGradients,
                     for_second_gradients);
    expect_all_close(std::span(second).last(2), std::span(second_order).last(2), kTangents,
                     for_tangents);
  }
}
inline void expect_agreement_of(const Shape& shape, const Options& options) {
  if (!runs_next_case(shape)) return;
  Case c(shape, options);
  expect_agreement(c);
}

// Equal bit by bit, where there is a result.
inline void expect_same_bits(const std::vector<Tensor>& got, const std::vector<Tensor>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    if (!want[i]) continue;
    EXPECT_EQ(got[i].bytes(), want[i].bytes()) << "result " << i;
  }
}

// The results of all four operators.
inline std::vector<Tensor> all_results(Case& c, const cpu::Implementation& level) {
  std::vector<Tensor> all = c.run(level.forward);
  const auto append = [&](const std::vector<Tensor>& results) {
    all.insert(all.end(), results.begin(), results.end());
  };
  append(c.run(level.backward));
  append(c.run(level.tangent));
  append(c.run(level.second_order));
  return all;
}

}  // namespace torch_ext::test
