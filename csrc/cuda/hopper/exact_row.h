// One row of a head as a warp has it: lane l the columns l, l + 32 …
//
// For rows that tile products cannot give (warp_finite in rows.h): they are computed position by
// position, from what is visible only.
#pragma once

#include <cmath>

#include "attention/problem.h"
#include "cuda/hopper/warpgroup.h"
#include "cuda/primitives/numbers.h"

namespace torch_ext::cuda::hopper {

// The first row of query head `head`; `group` query heads share one (1: each has its own).
template <class E>
TORCH_EXT_DEVICE E* head_data(const Problem& p, const Operand& x, int64_t head, int64_t group) {
  return static_cast<E*>(x.data) + head_offset(p, x, head, group);
}

template <class E, int kColumns>
TORCH_EXT_DEVICE void read_row(float (&x)[kColumns], const E* row) {
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) x[c] = to_float(row[c * kWarpSize + lane()]);
}

// Σ x y, in every lane.
template <int kColumns>
TORCH_EXT_DEVICE float row_product(const float (&x)[kColumns], const float (&y)[kColumns]) {
  float sum = 0;
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) sum = std::fma(x[c], y[c], sum);
  TORCH_EXT_UNROLL
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

// sum += weight x
template <int kColumns>
TORCH_EXT_DEVICE void add_row(float (&sum)[kColumns], float weight, const float (&x)[kColumns]) {
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) sum[c] = std::fma(weight, x[c], sum[c]);
}

// Whether the whole row is NaN, which it will remain. Looked at once in kLookInterval positions.
constexpr int kLookInterval = 64;
template <int kColumns>
TORCH_EXT_DEVICE bool is_lost(const float (&x)[kColumns]) {
  bool has_number = false;
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) has_number |= !std::isnan(x[c]);
  return !warp_any(has_number);
}

template <class E, int kColumns>
TORCH_EXT_DEVICE void write_row(E* row, const float (&x)[kColumns], float factor) {
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    row[c * kWarpSize + lane()] = from_float<E>(x[c] * factor);
  }
}

}  // namespace torch_ext::cuda::hopper
