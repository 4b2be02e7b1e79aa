// The reference's view of an operand: one head of it as a matrix of doubles, whatever its dtype.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "attention/problem.h"

namespace torch_ext::reference {

// Sums are rounded when they are complete: long ones would lose digits in double.
using Sum = long double;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// 2^n, a normal number: a product with it is ldexp, in a fraction of the time.
inline double power_of_two(int n) { return std::bit_cast<double>(int64_t{n + 1023} << 52); }

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
    return sign * static_cast<double>(fraction) *
           power_of_two(std::max(exponent, 1) - bias() - fraction_bits);
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
    const double fraction = std::nearbyint(std::fabs(x) * power_of_two(fraction_bits - exponent));
    const int64_t code =
        static_cast<int64_t>(fraction) + (int64_t{exponent + bias() - 1} << fraction_bits);
    return static_cast<uint16_t>(sign | std::min(code, infinity()));
  }
};

constexpr Format16 kBFloat16{8, 7};
constexpr Format16 kFloat16{5, 10};

inline double load(const Operand& operand, int64_t offset) {
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
    case DType::Int64:  // seeds, which have more digits than a double: dropout_scale reads them
      break;
  }
  return 0;
}

inline void store(const Operand& operand, int64_t offset, double x) {
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
    case DType::Int64:  // never results
      break;
  }
}

struct Matrix {
  const Operand& operand;
  int64_t offset;

  int64_t at(int64_t row, int64_t col) const {
    return offset + row * operand.row_stride + col * operand.col_stride;
  }
  double operator()(int64_t row = 0, int64_t col = 0) const { return load(operand, at(row, col)); }
  void set(int64_t row, int64_t col, double x) const { store(operand, at(row, col), x); }
  void add(int64_t row, int64_t col, double x) const { set(row, col, (*this)(row, col) + x); }

  explicit operator bool() const { return static_cast<bool>(operand); }
};

// `head` counts query heads: of an operand with as many heads, and of one with the key's.
inline Matrix query_matrix(const Problem& p, const Operand& operand, int64_t head) {
  return {operand, head_offset(p, operand, head)};
}
inline Matrix key_matrix(const Problem& p, const Operand& operand, int64_t head) {
  return {operand, head_offset(p, operand, head, p.group)};
}

// Row i of a times row j of b; absent matrices are zero.
inline double dot(const Matrix& a, int64_t i, const Matrix& b, int64_t j, int64_t size) {
  Sum sum = 0;
  if (!a || !b) return 0;
  for (int64_t c = 0; c < size; ++c) sum += a(i, c) * b(j, c);
  return static_cast<double>(sum);
}

}  // namespace torch_ext::reference
