#include "attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace torch_ext {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The two 16-bit formats: one sign bit, then the exponent, then the fraction.
struct Format16 {
  int exponent_bits, fraction_bits;

  int64_t infinity() const { return ((int64_t{1} << exponent_bits) - 1) << fraction_bits; }
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }

  double decode(uint16_t code) const {
    const int64_t magnitude = code & 0x7fff;
    const double sign = code & 0x8000 ? -1 : 1;
    if (magnitude > infinity()) return std::numeric_limits<double>::quiet_NaN();
    if (magnitude == infinity()) return sign * kInfinity;
    const int exponent = static_cast<int>(magnitude >> fraction_bits);
    int64_t fraction = magnitude & ((int64_t{1} << fraction_bits) - 1);
    if (exponent > 0) fraction |= int64_t{1} << fraction_bits;
    return sign * std::ldexp(fraction, std::max(exponent, 1) - bias() - fraction_bits);
  }

  // Rounds to nearest, ties to even, in one step from double.
  uint16_t encode(double x) const {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return static_cast<uint16_t>(sign | infinity() | 1 << (fraction_bits - 1));
    if (std::isinf(x)) return static_cast<uint16_t>(sign | infinity());
    if (x == 0) return sign;
    int exponent;  // of the leading bit; subnormal numbers share the smallest
    std::frexp(x, &exponent);
    exponent = std::max(exponent - 1, 1 - bias());
    // The leading bit and a carry out of the fraction both add one to the exponent field.
    const double fraction = std::nearbyint(std::ldexp(std::fabs(x), fraction_bits - exponent));
    const int64_t code =
        static_cast<int64_t>(fraction) + (int64_t{exponent + bias() - 1} << fraction_bits);
    return static_cast<uint16_t>(sign | std::min(code, infinity()));
  }
};

constexpr Format16 kBFloat16{8, 7};
constexpr Format16 kFloat16{5, 10};

double load(const Operand& operand, int64_t offset) {
  switch (operand.dtype) {
    case DType::Float64:
      return static_cast<const double*>(operand.data)[offset];
    case DType::Float32:
      return static_cast<const float*>(operand.data)[offset];
    case DType::BFloat16:
      return kBFloat16.decode(static_cast<const uint16_t*>(operand.data)[offset]);
    case DType::Float16:
      return kFloat16.decode(static_cast<const uint16_t*>(operand.data)[offset]);
    case DType::Bool:
      return static_cast<const uint8_t*>(operand.data)[offset] != 0;
  }
  return 0;
}

void store(const Operand& operand, int64_t offset, double x) {
  switch (operand.dtype) {
    case DType::Float64:
      static_cast<double*>(operand.data)[offset] = x;
      break;
    case DType::Float32:
      static_cast<float*>(operand.data)[offset] = static_cast<float>(x);
      break;
    case DType::BFloat16:
      static_cast<uint16_t*>(operand.data)[offset] = kBFloat16.encode(x);
      break;
    case DType::Float16:
      static_cast<uint16_t*>(operand.data)[offset] = kFloat16.encode(x);
      break;
    case DType::Bool:
      static_cast<uint8_t*>(operand.data)[offset] = x != 0;
      break;
  }
}

// One head of an operand as a matrix of doubles.
struct Matrix {
  const Operand& operand;
  int64_t offset;

  int64_t at(int64_t row, int64_t col) const {
    return offset + row * operand.row_stride + col * operand.col_stride;
  }
  double operator()(int64_t row, int64_t col = 0) const { return load(operand, at(row, col)); }
  void set(int64_t row, int64_t col, double x) const { store(operand, at(row, col), x); }
};

Matrix query_matrix(const Problem& p, const Operand& operand, int64_t head) {
  return {operand, head_offset(p, operand, head)};
}

Matrix key_matrix(const Problem& p, const Operand& operand, int64_t head) {
  return {operand, head_offset(p, operand, head, p.group)};
}

bool is_visible(const Problem& p, int64_t head, int64_t i, int64_t j) {
  if (p.is_causal && j > i) return false;
  if (p.mask && query_matrix(p, p.mask, head)(i, j) == 0) return false;
  return !(p.bias && query_matrix(p, p.bias, head)(i, j) == -kInfinity);
}

struct Score {
  int64_t key;
  double value;
};

// Row i of S = scale·QKᵀ + bias, visible entries only: what is hidden is never read.
std::vector<Score> visible_scores(const Problem& p, int64_t head, int64_t i) {
  const Matrix q = query_matrix(p, p.query, head), k = key_matrix(p, p.key, head);
  std::vector<Score> scores;
  for (int64_t j = 0; j < p.key_length; ++j) {
    if (!is_visible(p, head, i, j)) continue;
    double dot = 0;
    for (int64_t d = 0; d < p.head_size; ++d) dot += q(i, d) * k(j, d);
    const double bias = p.bias ? query_matrix(p, p.bias, head)(i, j) : 0;
    scores.push_back({j, p.scale * dot + bias});
  }
  return scores;
}

// Writes L and r = max + log_sum - L, what rounding L to its type loses.
void store_logsumexp(const ForwardProblem& p, int64_t head, int64_t i, double max, double log_sum) {
  const Matrix lse = query_matrix(p, p.logsumexp, head);
  lse.set(i, 0, max + log_sum);
  const double rounded = lse(i);
  const double large = std::fabs(max) > std::fabs(log_sum) ? max : log_sum;
  const double small = std::fabs(max) > std::fabs(log_sum) ? log_sum : max;
  const double residual = std::isfinite(rounded) ? (large - rounded) + small : 0;
  query_matrix(p, p.logsumexp_residual, head).set(i, 0, residual);
}

void forward_row(const ForwardProblem& p, int64_t head, int64_t i) {
  std::vector<Score> scores = visible_scores(p, head, i);
  double max = -kInfinity, sum = 0;
  bool is_nan = false;
  for (const Score& s : scores) {
    max = std::max(max, s.value);
    is_nan |= std::isnan(s.value);
  }
  if (max == -kInfinity && !is_nan) scores.clear();  // nothing but -inf counts as nothing to see
  for (const Score& s : scores) sum += std::exp(s.value - max);
  store_logsumexp(p, head, i, max, scores.empty() ? 0 : std::log(sum));

  const Matrix v = key_matrix(p, p.value, head), o = query_matrix(p, p.output, head);
  for (int64_t e = 0; e < p.value_head_size; ++e) {
    double weighted = 0;
    for (const Score& s : scores) weighted += std::exp(s.value - max) * v(s.key, e);
    o.set(i, e, scores.empty() ? 0 : weighted / sum);
  }
}

// Gradients of one key head, summed over the query heads of its group, rounded once at the end.
struct KeyGradients {
  std::vector<double> key, value;  // (M, D), (M, E)
};

// Writes row i of the query gradient; the rest is accumulated.
void backward_row(const BackwardProblem& p, int64_t head, int64_t i, KeyGradients& sums) {
  const Matrix q = query_matrix(p, p.query, head), k = key_matrix(p, p.key, head);
  const Matrix v = key_matrix(p, p.value, head), o = query_matrix(p, p.output, head);
  const Matrix d_o = query_matrix(p, p.grad_output, head);
  const int64_t value_size = p.grad_output ? p.value_head_size : 0;
  const double lse = query_matrix(p, p.logsumexp, head)(i);
  const double residual = query_matrix(p, p.logsumexp_residual, head)(i);

  // δ = rowsum(dO∘O) - dL
  double delta = p.grad_logsumexp ? -query_matrix(p, p.grad_logsumexp, head)(i) : 0;
  for (int64_t e = 0; e < value_size; ++e) delta += d_o(i, e) * o(i, e);

  std::vector<double> dq(p.head_size);
  std::vector<Score> scores = visible_scores(p, head, i);
  if (lse == -kInfinity) scores.clear();
  for (const Score& s : scores) {
    const int64_t j = s.key;
    const double weight = std::exp((s.value - lse) - residual);
    double dp = 0;  // dP = dO Vᵀ
    for (int64_t e = 0; e < value_size; ++e) dp += d_o(i, e) * v(j, e);
    const double ds = weight * (dp - delta);  // dS = P∘(dP - δ)

    for (int64_t d = 0; d < p.head_size; ++d) {
      dq[d] += p.scale * ds * k(j, d);
      sums.key[j * p.head_size + d] += p.scale * ds * q(i, d);
    }
    for (int64_t e = 0; e < value_size; ++e) {
      sums.value[j * p.value_head_size + e] += weight * d_o(i, e);
    }
    if (p.grad_bias) {
      const Matrix db = query_matrix(p, p.grad_bias, head);
      db.set(i, j, db(i, j) + ds);
    }
  }
  if (!p.grad_query) return;
  const Matrix grad_query = query_matrix(p, p.grad_query, head);
  for (int64_t d = 0; d < p.head_size; ++d) grad_query.set(i, d, dq[d]);
}

void store_rows(const Matrix& target, int64_t rows, int64_t cols, const std::vector<double>& x) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) target.set(i, c, x[i * cols + c]);
  }
}

}  // namespace

void reference_forward(const ForwardProblem& p) {
  for (int64_t head = 0; head < p.query_heads(); ++head) {
    for (int64_t i = 0; i < p.query_length; ++i) forward_row(p, head, i);
  }
}

void reference_backward(const BackwardProblem& p) {
  for (int64_t key_head = 0; key_head < p.key_heads(); ++key_head) {
    KeyGradients sums{std::vector<double>(p.key_length * p.head_size),
                      std::vector<double>(p.key_length * p.value_head_size)};
    const int64_t first = key_head * p.group;
    for (int64_t head = first; head < first + p.group; ++head) {
      for (int64_t i = 0; i < p.query_length; ++i) backward_row(p, head, i, sums);
    }
    if (p.grad_key) {
      store_rows(key_matrix(p, p.grad_key, first), p.key_length, p.head_size, sums.key);
    }
    if (p.grad_value) {
      store_rows(key_matrix(p, p.grad_value, first), p.key_length, p.value_head_size, sums.value);
    }
  }
}

}  // namespace torch_ext
