// The reference itself, against a dense softmax in long double and its derivatives by central
// differences.
#include "attention/reference.h"

#include <gtest/gtest.h>

#include <vector>

#include "attention_case.h"

namespace torch_ext::test {
namespace {

using Real = long double;

// Φ = Σ output∘grad_output + Σ logsumexp∘grad_logsumexp, and on the way output and logsumexp,
// straight from the definition: softmax(scale·QKᵀ + bias) V over the visible keys.
struct Dense {
  std::vector<Real> output, logsumexp;
  Real value = 0;
};

double broadcast_get(const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t j) {
  const auto& s = t.sizes();
  return t.get(s[0] == 1 ? 0 : b, s[1] == 1 ? 0 : h, s[2] == 1 ? 0 : i, s[3] == 1 ? 0 : j);
}

Dense dense(const Case& c) {
  const Shape& s = c.shape;
  Dense result;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.n; ++i) {
        const int64_t key_head = h / (s.heads / s.key_heads);
        std::vector<Real> weight(s.m);
        Real sum = 0;
        for (int64_t j = 0; j < s.m; ++j) {
          Real score = 0;
          for (int64_t d = 0; d < s.d; ++d)
            score += Real(c.query.get(b, h, i, d)) * c.key.get(b, key_head, j, d);
          score *= c.options.scale;
          if (c.bias) score += broadcast_get(c.bias, b, h, i, j);
          const bool hidden =
              (c.mask && broadcast_get(c.mask, b, h, i, j) == 0) || (c.options.is_causal && j > i);
          sum += weight[j] = hidden ? 0 : std::exp(score);
        }
        result.logsumexp.push_back(sum == 0 ? -kInf : std::log(sum));
        if (sum > 0) result.value += result.logsumexp.back() * c.grad_logsumexp.get(b, h, i, 0);
        for (int64_t e = 0; e < s.e; ++e) {
          Real output = 0;
          for (int64_t j = 0; sum > 0 && j < s.m; ++j)
            output += weight[j] / sum * c.value.get(b, key_head, j, e);
          result.output.push_back(output);
          result.value += output * c.grad_output.get(b, h, i, e);
        }
      }
  return result;
}

Case small_case(const std::string& mask, const std::string& bias, bool is_causal) {
  Options options;
  options.dtype = DType::Float64;
  options.layout = Layout::kGaps;
  options.mask = mask;
  options.bias = bias;
  options.is_causal = is_causal;
  options.scale = -0.7;
  return Case({2, 4, 2, 3, 5, 3, 2}, options);
}

struct Choice {
  const char *mask, *bias;
  bool is_causal;
};
constexpr Choice kChoices[] = {{"", "", false},  {"", "", true},      {"BHNM", "", false},
                               {"M", "", true},  {"", "BHNM", false}, {"BM", "HN", false},
                               {"N", "-", true}, {"BN", "NM", true}};

TEST(ReferenceTest, ForwardIsTheDenseSoftmax) {
  for (const Choice& choice : kChoices) {
    Case c = small_case(choice.mask, choice.bias, choice.is_causal);
    const Dense want = dense(c);
    const std::vector<Tensor> got = c.run(reference_forward);
    size_t at = 0;
    got[0].for_each(
        [&](auto... index) { EXPECT_NEAR(got[0].get(index...), want.output[at++], 1e-14); });
    at = 0;
    got[1].for_each([&](auto... index) {
      const double x = got[1].get(index...), y = static_cast<double>(want.logsumexp[at++]);
      EXPECT_TRUE(x == y || std::fabs(x - y) < 1e-14) << x << " " << y;
    });
    for (const Tensor& t : got) EXPECT_TRUE(t.gaps_untouched());
  }
}

// Compares a gradient with central differences of Φ, element by element of the tensor it belongs
// to.
void expect_differences(Case& c, Tensor& input, const Tensor& gradient, const char* name) {
  input.for_each([&](auto... index) {
    const double x = input.get(index...), step = 1e-4;
    input.set(index..., x + step);  // a bias that hides stays -inf, and its difference is 0
    const Real above = dense(c).value;
    input.set(index..., x - step);
    const Real below = dense(c).value;
    input.set(index..., x);
    EXPECT_NEAR(gradient.get(index...), (above - below) / (2 * step), 1e-6) << name;
  });
}

TEST(ReferenceTest, BackwardIsTheDerivative) {
  for (const Choice& choice : kChoices) {
    Case c = small_case(choice.mask, choice.bias, choice.is_causal);
    c.run(reference_forward);
    const std::vector<Tensor> got = c.run(reference_backward);
    expect_differences(c, c.query, got[0], "grad_query");
    expect_differences(c, c.key, got[1], "grad_key");
    expect_differences(c, c.value, got[2], "grad_value");
    if (c.bias) expect_differences(c, c.bias, got[3], "grad_bias");
  }
}

TEST(ReferenceTest, RoundsTo16BitsOnce) {
  for (const DType dtype : {DType::BFloat16, DType::Float16}) {
    Options options;
    options.dtype = dtype;
    Case c({1, 1, 1, 4, 9, 3, 8}, options);
    const Dense want = dense(c);
    const std::vector<Tensor> got = c.run(reference_forward);
    size_t at = 0;
    got[0].for_each([&](auto... index) {
      const int exponent_bits = dtype == DType::BFloat16 ? 8 : 5;
      const double rounded =
          decode16(encode16(static_cast<double>(want.output[at++]), exponent_bits), exponent_bits);
      EXPECT_EQ(got[0].get(index...), rounded);
    });
  }
}

}  // namespace
}  // namespace torch_ext::test
