// The reference itself: the forward against a dense softmax in long double, every derivative
// against differences of the one below it, and every option where the answer is known by heart.
#include "attention/reference.h"

#include <gtest/gtest.h>

#include <vector>

#include "attention/philox.h"
#include "attention_case.h"

namespace torch_ext::test {
namespace {

using Real = long double;

double broadcast_get(const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t j) {
  const auto& s = t.sizes();
  return t.get(s[0] == 1 ? 0 : b, s[1] == 1 ? 0 : h, s[2] == 1 ? 0 : i, s[3] == 1 ? 0 : j);
}

bool is_visible(const Case& c, int64_t b, int64_t h, int64_t i, int64_t j) {
  const Options& o = c.options;
  const int64_t beside = i + c.offset();  // the key beside query i
  return !(o.is_causal && j > beside) && j >= beside - o.left && j <= beside + o.right &&
         !(c.mask && broadcast_get(c.mask, b, h, i, j) == 0);
}

Real score(const Case& c, int64_t b, int64_t h, int64_t i, int64_t j) {
  Real s = 0;
  for (int64_t d = 0; d < c.shape.d; ++d)
    s += Real(c.query.get(b, h, i, d)) * c.key.get(b, h * c.shape.key_heads / c.shape.heads, j, d);
  s *= c.options.scale;
  if (const Real cap = c.options.softcap; cap > 0) s = cap * std::tanh(s / cap);
  if (c.bias) s += broadcast_get(c.bias, b, h, i, j);
  if (c.slopes) s -= broadcast_get(c.slopes, b, h, 0, 0) * std::abs(j - i - c.offset());
  return s;
}

Real dropout(const Case& c, int64_t b, int64_t h, int64_t i, int64_t j) {
  const double p = c.options.dropout_p;
  if (p == 0) return 1;
  const auto seed = static_cast<int64_t>(broadcast_get(c.seed, b, 0, 0, 0));
  return dropout_keeps(seed, h, i, j, dropout_threshold(p)) ? 1 / (1 - p) : 0;
}

// Φ = Σ output∘grad_output + Σ logsumexp∘grad_logsumexp, and on the way output and logsumexp,
// straight from the definition.
struct Dense {
  std::vector<Real> output, logsumexp;
  Real value = 0;
};

Dense dense(const Case& c) {
  const Shape& s = c.shape;
  Dense result;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.n; ++i) {
        std::vector<Real> weight(s.m);
        Real sum = c.sink ? std::exp(Real(broadcast_get(c.sink, b, h, 0, 0))) : 0;
        for (int64_t j = 0; j < s.m; ++j)
          sum += weight[j] = is_visible(c, b, h, i, j) ? std::exp(score(c, b, h, i, j)) : 0;
        result.logsumexp.push_back(std::log(sum));
        if (sum > 0) result.value += result.logsumexp.back() * c.grad_logsumexp.get(b, h, i, 0);
        for (int64_t e = 0; e < s.e; ++e) {
          Real output = 0;
          for (int64_t j = 0; sum > 0 && j < s.m; ++j)
            output += weight[j] / sum * dropout(c, b, h, i, j) *
                      c.value.get(b, h * s.key_heads / s.heads, j, e);
          result.output.push_back(output);
          result.value += output * c.grad_output.get(b, h, i, e);
        }
      }
  return result;
}

// Options one at a time and all at once.
std::vector<Options> choices() {
  Options plain;
  plain.dtype = DType::Float64;
  plain.layout = Layout::kGaps;
  plain.scale = -0.7;
  std::vector<Options> all(1, plain);
  const auto add = [&](auto change) {
    all.push_back(plain);
    change(all.back());
  };
  const auto everything = [](Options& o) {
    o.mask = "BM";
    o.bias = "HN";
    o.left = 2;
    o.right = 3;
    o.bottom_right = true;
    o.softcap = 1.3;
    o.slopes = "BH";
    o.sink = "H";
    o.dropout_p = 0.4;
  };
  add([](Options& o) { o.is_causal = true; });
  add([](Options& o) { o.is_causal = o.bottom_right = true; });
  add([](Options& o) { o.mask = "BHNM"; });
  add([](Options& o) { o.bias = "BHNM"; });
  add([](Options& o) { o.bias = "-"; });
  add([](Options& o) { o.left = 1, o.right = 1; });
  add([](Options& o) { o.left = 0, o.bottom_right = true; });
  add([](Options& o) { o.softcap = 0.8; });
  add([](Options& o) { o.slopes = "H"; });
  add([](Options& o) { o.slopes = "-", o.bottom_right = true; });
  add([](Options& o) { o.sink = "BH"; });
  add([](Options& o) { o.sink = "-", o.is_causal = true, o.mask = "N"; });
  add([](Options& o) { o.dropout_p = 0.5; });
  add([](Options& o) { o.dropout_p = 0.2, o.seed = "-"; });
  add(everything);
  add([&](Options& o) { everything(o), o.is_causal = true, o.bias = "BNM"; });
  add([&](Options& o) { everything(o), o.split_batch = true, o.mask = "", o.slopes = "-"; });
  return all;
}

constexpr Shape kShapes[] = {{2, 4, 2, 3, 5, 3, 2}, {2, 2, 1, 5, 3, 2, 3}};

template <class Check>
void for_each_case(const Check& check) {
  for (const Shape& shape : kShapes)
    for (const Options& options : choices()) {
      SCOPED_TRACE(describe(shape, options));
      Case c(shape, options);
      check(c);
    }
}

void expect_near(const Tensor& got, const std::vector<Real>& want, double tolerance) {
  size_t at = 0;
  got.for_each([&](auto... index) {
    const double x = got.get(index...), y = static_cast<double>(want[at++]);
    EXPECT_TRUE(x == y || std::fabs(x - y) <= tolerance) << x << " instead of " << y;
  });
  EXPECT_TRUE(got.gaps_untouched());
}

TEST(ReferenceTest, ForwardIsTheDenseSoftmax) {
  for_each_case([](Case& c) {
    const Dense want = dense(c);
    const std::vector<Tensor> got = c.run(reference_forward);
    expect_near(got[0], want.output, 1e-14);
    expect_near(got[1], want.logsumexp, 1e-14);
    EXPECT_TRUE(got[2].gaps_untouched());
  });
}

// Element by element of every input. A bias that hides stays -inf, and its difference is 0.
TEST(ReferenceTest, BackwardIsTheDerivativeOfTheForward) {
  for_each_case([](Case& c) {
    c.run(reference_forward);
    const std::vector<Tensor> got = c.run(reference_backward);
    const double step = 1e-5;
    for (size_t n = 0; n < got.size(); ++n) {
      Tensor& input = *c.all()[n];
      if (!input) continue;
      input.for_each([&](auto... index) {
        const double x = input.get(index...);
        input.set(index..., x + step);
        const Real above = dense(c).value;
        input.set(index..., x - step);
        const Real below = dense(c).value;
        input.set(index..., x);
        EXPECT_NEAR(got[n].get(index...), (above - below) / (2 * step), 1e-6) << kInputNames[n];
      });
      EXPECT_TRUE(got[n].gaps_untouched()) << kInputNames[n];
    }
  });
}

// (f(x + step x') - f(x - step x')) / (2 step) for all results of f, element by element.
template <class Function>
std::vector<std::vector<Real>> differences(Case& c, const Function& f) {
  constexpr double kStep = 1e-5;
  const auto move = [&](double step) {
    for (size_t n = 0; n < c.all().size(); ++n) {
      Tensor &input = *c.all()[n], &tangent = *c.direction.all()[n];
      if (!input) continue;
      input.for_each([&](auto... index) {
        input.set(index..., input.get(index...) + step * tangent.get(index...));
      });
    }
  };
  const auto elements = [](const std::vector<Tensor>& tensors) {
    std::vector<std::vector<Real>> all;
    for (const Tensor& t : tensors) {
      all.emplace_back();
      if (t) t.for_each([&](auto... index) { all.back().push_back(t.get(index...)); });
    }
    return all;
  };
  move(kStep);
  auto result = elements(f());
  move(-2 * kStep);
  const auto below = elements(f());
  move(kStep);
  for (size_t n = 0; n < result.size(); ++n)
    for (size_t at = 0; at < result[n].size(); ++at)
      result[n][at] = result[n][at] == below[n][at]  // both may be -inf
                          ? 0
                          : (result[n][at] - below[n][at]) / (2 * kStep);
  return result;
}

TEST(ReferenceTest, TangentIsTheDirectionalDerivativeOfTheForward) {
  for_each_case([](Case& c) {
    const auto want = differences(c, [&] { return c.run(reference_forward); });
    c.run(reference_forward);
    const std::vector<Tensor> got = c.run(reference_tangent);
    expect_near(got[0], want[0], 1e-6);
    expect_near(got[1], want[1], 1e-6);
  });
}

// The Hessian is symmetric: the gradient of <grad_output, output'> + <grad_logsumexp, logsumexp'>
// is the directional derivative of the gradient.
TEST(ReferenceTest, SecondOrderIsTheDirectionalDerivativeOfTheBackward) {
  for_each_case([](Case& c) {
    const auto want = differences(c, [&] {
      c.run(reference_forward);
      return c.run(reference_backward);
    });
    c.run(reference_forward);
    const std::vector<Tensor> tangents = c.run(reference_tangent);
    const std::vector<Tensor> got = c.run(reference_second_order);
    for (size_t n = 0; n < want.size(); ++n)
      if (got[n]) expect_near(got[n], want[n], 1e-6);
    EXPECT_EQ(got[6].bytes(), tangents[0].bytes());
    EXPECT_EQ(got[7].bytes(), tangents[1].bytes());
  });
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
