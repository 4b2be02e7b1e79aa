// The accuracy rule in float32: no operator errs more than twice as much as the plain formulas do
// in the same type, plus 4 ulp of the largest value. Products in TF32 would.
#include <gtest/gtest.h>

#include "compare.h"

namespace torch_ext::test {
namespace {

// x + x' ε: what is computed with it carries its directional derivative along.
struct Dual {
  float x = 0, dot = 0;

  Dual(float value = 0, float tangent = 0) : x(value), dot(tangent) {}
  friend Dual operator+(Dual a, Dual b) { return {a.x + b.x, a.dot + b.dot}; }
  friend Dual operator-(Dual a, Dual b) { return {a.x - b.x, a.dot - b.dot}; }
  friend Dual operator*(Dual a, Dual b) { return {a.x * b.x, a.x * b.dot + a.dot * b.x}; }
  friend Dual operator/(Dual a, Dual b) { return {a.x / b.x, (a.dot - a.x / b.x * b.dot) / b.x}; }
  friend Dual exp(Dual a) { return {std::exp(a.x), std::exp(a.x) * a.dot}; }
  friend Dual log(Dual a) { return {std::log(a.x), a.dot / a.x}; }
};

class Plain {
 public:
  using Matrix = std::vector<std::vector<Dual>>;

  // Of one head, without options: S = scale Q Kᵀ, P = softmax(S), O = P V and the gradients.
  explicit Plain(const Case& c)
      : q_(matrix(c.query, c.direction.query)),
        k_(matrix(c.key, c.direction.key)),
        v_(matrix(c.value, c.direction.value)),
        do_(matrix(c.grad_output)),
        dlse_(matrix(c.grad_logsumexp)),
        scale_(static_cast<float>(c.options.scale)) {
    p_ = product(q_, k_);
    for (auto& row : p_) add_softmax(row);
    o = product(p_, transposed(v_));
    differentiate();
  }

  Matrix o, lse, dq, dk, dv;

 private:
  static Matrix matrix(const Tensor& x, const Tensor& dot = {}) {
    Matrix result(x.sizes()[2], std::vector<Dual>(x.sizes()[3]));
    x.for_each([&](int64_t, int64_t, int64_t r, int64_t c) {
      result[r][c] = {static_cast<float>(x.get(0, 0, r, c)),
                      dot ? static_cast<float>(dot.get(0, 0, r, c)) : 0.0f};
    });
    return result;
  }
  static Matrix transposed(const Matrix& a) {
    Matrix result(a[0].size(), std::vector<Dual>(a.size()));
    for (size_t i = 0; i < a.size(); ++i)
      for (size_t j = 0; j < a[i].size(); ++j) result[j][i] = a[i][j];
    return result;
  }
  // A Bᵀ, one chain of sums for each element, as on a GPU.
  static Matrix product(const Matrix& a, const Matrix& b) {
    Matrix result(a.size(), std::vector<Dual>(b.size()));
    for (size_t i = 0; i < a.size(); ++i)
      for (size_t j = 0; j < b.size(); ++j)
        for (size_t k = 0; k < a[i].size(); ++k) {
          result[i][j] = result[i][j] + a[i][k] * b[j][k];
        }
    return result;
  }

  void add_softmax(std::vector<Dual>& row) {
    float max = -std::numeric_limits<float>::infinity();
    for (Dual& s : row) {
      s = s * scale_;
      max = std::max(max, s.x);
    }
    Dual sum;
    for (Dual& s : row) {
      s = exp(s - max);
      sum = sum + s;
    }
    for (Dual& s : row) s = s / sum;
    lse.push_back({log(sum) + max});
  }

  // dS = P (dP - rowsum(P dP) + dlse)
  void differentiate() {
    Matrix ds = product(do_, v_);
    for (size_t i = 0; i < ds.size(); ++i) {
      Dual mean;
      for (size_t j = 0; j < ds[i].size(); ++j) mean = mean + p_[i][j] * ds[i][j];
      for (size_t j = 0; j < ds[i].size(); ++j) {
        ds[i][j] = p_[i][j] * (ds[i][j] - mean + dlse_[i][0]) * scale_;
      }
    }
    dq = product(ds, transposed(k_));
    dk = product(transposed(ds), transposed(q_));
    dv = product(transposed(p_), transposed(do_));
  }

  Matrix q_, k_, v_, do_, dlse_, p_;
  const Dual scale_;
};

// The largest errors of one result.
struct Errors {
  double ours = 0, plain = 0, largest = 0;

  // `part` of the plain formula's: its values, or their derivatives.
  void add(const Tensor& got, const Tensor& exact, const Plain::Matrix& plain_result,
           float Dual::* part) {
    exact.for_each([&](int64_t b, int64_t h, int64_t r, int64_t c) {
      const double want = exact.get(b, h, r, c);
      ours = std::max(ours, std::fabs(got.get(b, h, r, c) - want));
      plain = std::max(plain, std::fabs(plain_result[r][c].*part - want));
      largest = std::max(largest, std::fabs(want));
    });
  }
  double bound() const {
    int exponent;
    std::frexp(largest, &exponent);
    return 2 * plain + 4 * std::ldexp(epsilon(DType::Float32), exponent - 1);
  }
};

// The reference's results in float64, of inputs that float32 holds.
std::vector<Tensor> exact_results(const Case& c) {
  Options o = c.options;
  o.dtype = DType::Float64;
  Case exact(c.shape, o);
  const auto copy = [](Tensor& to, const Tensor& from) {
    from.for_each([&](auto... at) { to.set(at..., from.get(at...)); });
  };
  for (Tensor Inputs::* input : {&Inputs::query, &Inputs::key, &Inputs::value}) {
    copy(exact.*input, c.*input);
    copy(exact.direction.*input, c.direction.*input);
  }
  copy(exact.grad_output, c.grad_output);
  copy(exact.grad_logsumexp, c.grad_logsumexp);
  return all_results(exact, {"reference", nullptr, reference_forward, reference_backward,
                             reference_tangent, reference_second_order});
}

struct Result {
  const char* name;
  int index;  // among all_results
  Plain::Matrix Plain::* plain;
  float Dual::* part;
};
const Result kResults[] = {{"output", 0, &Plain::o, &Dual::x},
                           {"logsumexp", 1, &Plain::lse, &Dual::x},
                           {"grad_query", 3, &Plain::dq, &Dual::x},
                           {"grad_key", 4, &Plain::dk, &Dual::x},
                           {"grad_value", 5, &Plain::dv, &Dual::x},
                           {"output_tangent", 9, &Plain::o, &Dual::dot},
                           {"logsumexp_tangent", 10, &Plain::lse, &Dual::dot},
                           {"second grad_query", 11, &Plain::dq, &Dual::dot},
                           {"second grad_key", 12, &Plain::dk, &Dual::dot},
                           {"second grad_value", 13, &Plain::dv, &Dual::dot}};

// Over a few cases of one shape: the largest error of a single one is a matter of luck.
TEST(AccuracyTest, AtMostTwiceThePlainError) {
  const Shape shapes[] = {{1, 1, 1, 40, 70, 64, 64},
                          {1, 1, 1, 3, 600, 32, 32},
                          {1, 1, 1, 70, 33, 128, 128},
                          {1, 1, 1, 20, 200, 8, 100},
                          {1, 1, 1, 65, 65, 200, 16}};
  for (const Shape& shape : shapes) {
    for (const double sharpness : {1, 2}) {
      Options o;
      o.scale = sharpness / std::sqrt(static_cast<double>(shape.d));
      Errors errors[std::size(kResults)];
      for (const uint64_t seed : {1, 2, 3}) {
        Case c(shape, o, seed);
        const Plain plain(c);
        const auto exact = exact_results(c), got = all_results(c, fast_implementations()[0]);
        for (size_t i = 0; i < std::size(kResults); ++i) {
          const Result& x = kResults[i];
          errors[i].add(got[x.index], exact[x.index], plain.*x.plain, x.part);
        }
      }
      for (size_t i = 0; i < std::size(kResults); ++i) {
        EXPECT_LE(errors[i].ours, errors[i].bound())
            << kResults[i].name << " of " << describe(shape, o) << ", scale " << o.scale
            << ": the plain formula errs by " << errors[i].plain;
      }
    }
  }
}

}  // namespace
}  // namespace torch_ext::test
