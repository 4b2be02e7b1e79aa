// Whether an implementation's results are the reference's, up to rounding.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
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

// The implementations this machine can run, but for the reference.
inline std::vector<cpu::Implementation> fast_implementations() {
  int count;
  const cpu::Implementation* all = cpu::implementations(&count);
  std::vector<cpu::Implementation> supported;
  for (int i = 0; i < count - 1; ++i)
    if (all[i].is_supported()) supported.push_back(all[i]);
  return supported;
}

// Both round once to the type of the tensor; what is left is the accumulation's error, `ulps` of
// its type for numbers of the size of the tensor's largest. What is not finite must be so in both,
// in the same way.
inline void expect_close(const Tensor& got, const Tensor& want, const char* name,
                         double ulps = 64) {
  if (!want) return;
  double largest = 1;
  const auto grow = [&](auto... at) {
    if (std::isfinite(want.get(at...))) largest = std::max(largest, std::fabs(want.get(at...)));
  };
  want.for_each(grow);
  const double accumulation = epsilon(statistics_dtype(want.dtype())) * ulps * largest;
  int64_t wrong = 0;
  want.for_each([&](int64_t b, int64_t h, int64_t r, int64_t c) {
    const double x = got.get(b, h, r, c), y = want.get(b, h, r, c);
    if (same(x, y) || std::fabs(x - y) <= epsilon(want.dtype()) * std::fabs(y) + accumulation)
      return;
    if (wrong++ == 0)
      ADD_FAILURE() << name << "[" << b << ", " << h << ", " << r << ", " << c << "] = " << x
                    << ", expected " << y;
  });
  EXPECT_EQ(wrong, 0) << "elements of " << name << " are wrong";
  EXPECT_TRUE(got.gaps_untouched()) << "written outside the elements of " << name;
}

inline std::string describe(const Case& c) {
  std::string text;
  for (const int64_t n : {c.shape.batch, c.shape.heads, c.shape.key_heads, c.shape.n, c.shape.m,
                          c.shape.d, c.shape.e})
    text += (text.empty() ? "B H Hkv N M D E = " : " ") + std::to_string(n);
  return text + ", dtype " + std::to_string(int(c.options.dtype)) + ", layout " +
         std::to_string(int(c.options.layout)) + ", mask '" + c.options.mask + "', bias '" +
         c.options.bias + "', causal " + std::to_string(c.options.is_causal);
}

// logsumexp + residual: together they carry more digits than either.
inline void expect_close_logsumexp(const std::vector<Tensor>& got, const std::vector<Tensor>& want,
                                   double ulps) {
  expect_close(got[1], want[1], "logsumexp", 8);
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

// Forward and backward of every level against the reference. A score is rounded relative to its own
// size, which its exponential then has as an absolute error: give `largest_score` where scores are
// large.
inline void expect_agreement(Case& c, double largest_score = 1) {
  for (const cpu::Implementation& level : fast_implementations()) {
    SCOPED_TRACE(std::string(level.name) + ": " + describe(c));
    const std::vector<Tensor> forward = c.run(level.forward),
                              forward_reference = c.run(reference_forward);
    expect_close(forward[0], forward_reference[0], "output", 64 * largest_score);
    expect_close_logsumexp(forward, forward_reference, 64 * largest_score);
    const std::vector<Tensor> backward = c.run(level.backward),
                              backward_reference = c.run(reference_backward);
    const char* names[] = {"grad_query", "grad_key", "grad_value", "grad_bias"};
    for (int i = 0; i < 4; ++i)
      expect_close(backward[i], backward_reference[i], names[i], 256 * largest_score);
  }
}

}  // namespace torch_ext::test
