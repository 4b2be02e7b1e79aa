// csrc/cuda/primitives/matrix.h on the host.
#pragma once

#include <cstring>

#include "cuda/primitives/numbers.h"

namespace torch_ext::cuda {

namespace host {

struct LoadOperand {
  const void* row;
  uint16_t halves[4][2];  // of x[0 … 3]
};

template <bool kTransposed>
void load_matrices(void* const* operands, int) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int row = 0; row < 8; ++row) {
      uint16_t elements[8];
      std::memcpy(elements, static_cast<LoadOperand*>(operands[8 * matrix + row])->row, 16);
      for (int column = 0; column < 8; ++column) {
        const int r = kTransposed ? column : row, c = kTransposed ? row : column;
        static_cast<LoadOperand*>(operands[4 * r + c / 2])->halves[matrix][c % 2] =
            elements[column];
      }
    }
  }
}

struct MultiplyOperand {
  float* c;
  uint32_t a[4], b[2];
};

template <class E>
float half_of(uint32_t x, int half) {
  return to_float(E{static_cast<uint16_t>(half == 0 ? x : x >> 16)});
}

// Sanitizers have nothing to find here, and would make it several times slower.
__attribute__((no_sanitize("address", "undefined"))) inline void multiply_add(
    float (&c)[16][8], const float (&a)[16][16], const float (&b)[16][8]) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
}

template <class E>
void multiply_add(void* const* operands, int) {
  float a[16][16], b[16][8], c[16][8];
  const auto lane_of = [&](int row, int column) {
    return static_cast<MultiplyOperand*>(operands[row % 8 * 4 + column % 8 / 2]);
  };
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      a[i][k] = half_of<E>(lane_of(i, k)->a[i / 8 + 2 * (k / 8)], k % 2);
    }
    for (int j = 0; j < 8; ++j) {
      b[i][j] = half_of<E>(lane_of(j, i)->b[i / 8], i % 2);
      c[i][j] = lane_of(i, j)->c[2 * (i / 8) + j % 2];
    }
  }
  multiply_add(c, a, b);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) lane_of(i, j)->c[2 * (i / 8) + j % 2] = c[i][j];
  }
}

inline void load(uint32_t (&x)[4], const void* row, const char* name, Act act,
                 const Location& where) {
  check_shared(row, 16, name, where);
  LoadOperand operand{row, {}};
  meet(Group::Warp, name, where, &operand, act);
  for (int matrix = 0; matrix < 4; ++matrix) {
    x[matrix] = operand.halves[matrix][0] | uint32_t{operand.halves[matrix][1]} << 16;
  }
}

}  // namespace host

TORCH_EXT_DEVICE void load_matrices(uint32_t (&x)[4], const void* row,
                                    host::Location where = host::Location::current()) {
  host::load(x, row, "load_matrices", host::load_matrices<false>, where);
}

TORCH_EXT_DEVICE void load_matrices_transposed(uint32_t (&x)[4], const void* row,
                                               host::Location where = host::Location::current()) {
  host::load(x, row, "load_matrices_transposed", host::load_matrices<true>, where);
}

template <class E>
TORCH_EXT_DEVICE void multiply_add_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1,
                                           host::Location where = host::Location::current()) {
  host::MultiplyOperand operand{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  host::meet(host::Group::Warp, "multiply_add_16x8x16", where, &operand, host::multiply_add<E>);
}

}  // namespace torch_ext::cuda
