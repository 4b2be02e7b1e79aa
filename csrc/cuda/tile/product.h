// The two products of a warp: s += a b^T of two chunks, and out += w x of weights in registers and
// a chunk.
//
// float16 and bfloat16 run on the matrix units with float32 sums. float32 and float64 are
// multiplied number by number: the matrix units would round float32 to TF32.
#pragma once

#include "cuda/primitives/matrix.h"
#include "cuda/tile/chunk.h"
#include "cuda/tile/fragment.h"

namespace torch_ext::cuda {

// One unit in registers.
template <class E>
struct Vector {
  static constexpr int kCount = kUnitBytes / sizeof(E);
  alignas(kUnitBytes) E x[kCount];
};
template <class E>
TORCH_EXT_DEVICE Vector<E> load_vector(const unsigned char* chunk, int row, int unit) {
  return *reinterpret_cast<const Vector<E>*>(unit_of(chunk, row, unit));
}

template <class E, int kColumns>
TORCH_EXT_DEVICE void multiply_transposed_by_matrix_unit(Fragment<float, kColumns>& s,
                                                         const unsigned char* a, int first_row,
                                                         const unsigned char* b, int columns) {
  const int lane = lane_index();
  TORCH_EXT_UNROLL
  for (int k = 0; k < kUnits / 2; ++k) {  // 16 columns of a and b
    if (16 * k >= columns) break;
    uint32_t left[4];
    load_matrices(left, unit_of(a, first_row + lane % 16, 2 * k + lane / 16));
    TORCH_EXT_UNROLL
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t right[4];
      load_matrices(right, unit_of(b, 16 * n + 8 * (lane / 16) + lane % 8, 2 * k + lane / 8 % 2));
      multiply_add_16x8x16<E>(s.x[2 * n], left, right[0], right[1]);
      multiply_add_16x8x16<E>(s.x[2 * n + 1], left, right[2], right[3]);
    }
  }
}

template <class E, int kColumns>
TORCH_EXT_DEVICE void multiply_transposed_by_number(Fragment<E, kColumns>& s,
                                                    const unsigned char* a, int first_row,
                                                    const unsigned char* b, int columns) {
  constexpr int kCount = Vector<E>::kCount;
  for (int unit = 0; unit < kUnits && unit * kCount < columns; ++unit) {
    Vector<E> left[2];
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half)
      left[half] = load_vector<E>(a, first_row + fragment_row(half), unit);
    TORCH_EXT_UNROLL
    for (int n = 0; n < kColumns / 8; ++n) TORCH_EXT_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      const Vector<E> right = load_vector<E>(b, score_column(n, pair), unit);
      TORCH_EXT_UNROLL
      for (int k = 0; k < kCount; ++k) TORCH_EXT_UNROLL
      for (int half = 0; half < 2; ++half) s.x[n][2 * half + pair] += left[half].x[k] * right.x[k];
    }
  }
}

// s += a b^T over the first `columns` columns of a chunk; `first_row` is the warp's first row of a.
template <class E, int kColumns>
TORCH_EXT_DEVICE void multiply_transposed(Fragment<AccumulateOf<E>, kColumns>& s,
                                          const unsigned char* a, int first_row,
                                          const unsigned char* b, int columns) {
  if constexpr (kByMatrixUnit<E>)
    multiply_transposed_by_matrix_unit<E>(s, a, first_row, b, columns);
  else
    multiply_transposed_by_number<E>(s, a, first_row, b, columns);
}

// Weights as the left factor. at() is a number of this lane's: of key k, or those of its lanes, and
// of one of its rows.
template <class E, int kKeys, bool = kByMatrixUnit<E>>
struct Weights {
  Fragment<E, kKeys> numbers;

  TORCH_EXT_DEVICE explicit Weights(const Fragment<E, kKeys>& w) : numbers(w) {}
  TORCH_EXT_DEVICE E at(int k, int half) const { return numbers.x[k / 8][2 * half + k % 2]; }
};
// For the matrix units: rounded to 16 bits, two keys in a register.
template <class E, int kKeys>
struct Weights<E, kKeys, true> {
  uint32_t pairs[kKeys / 16][4];

  TORCH_EXT_DEVICE explicit Weights(const Fragment<float, kKeys>& w) {
    TORCH_EXT_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half)
      pairs[n / 2][n % 2 * 2 + half] = pack<E>(w.x[n][2 * half], w.x[n][2 * half + 1]);
  }
  TORCH_EXT_DEVICE float at(int k, int half) const {
    const uint32_t pair = pairs[k / 16][k / 8 % 2 * 2 + half];
    return to_float(E{static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16)});
  }
};

template <class E, int kFirst, int kKeys, int kColumns>
TORCH_EXT_DEVICE void multiply_by_matrix_unit(Fragment<float, kColumns>& out,
                                              const Weights<E, kKeys>& w,
                                              const unsigned char* chunk, int columns) {
  const int lane = lane_index();
  TORCH_EXT_UNROLL
  for (int k = 0; k < kKeys / 16; ++k) TORCH_EXT_UNROLL
  for (int n = 0; n < kUnits / 2; ++n) {  // 16 columns of the chunk
    if (16 * n >= columns) break;
    uint32_t right[4];
    load_matrices_transposed(right, unit_of(chunk, 16 * k + lane % 16, 2 * n + lane / 16));
    multiply_add_16x8x16<E>(out.x[kFirst + 2 * n], w.pairs[k], right[0], right[1]);
    multiply_add_16x8x16<E>(out.x[kFirst + 2 * n + 1], w.pairs[k], right[2], right[3]);
  }
}

template <class E, int kFirst, int kKeys, int kColumns>
TORCH_EXT_DEVICE void multiply_by_number(Fragment<E, kColumns>& out, const Weights<E, kKeys>& w,
                                         const unsigned char* chunk) {
  constexpr int kEights = kChunkColumns<E> / 8;  // of the chunk's columns
  constexpr int kStep = Vector<E>::kCount / 2;   // eights that one unit per lane serves
  const int quad = lane_index() & ~3;
  TORCH_EXT_UNROLL
  for (int k = 0; k < kKeys; ++k) {
    E weight[2];
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) weight[half] = shuffle(w.at(k, half), quad + k % 8 / 2);
    TORCH_EXT_UNROLL
    for (int n = 0; n < kEights; n += kStep) {
      const Vector<E> right = load_vector<E>(chunk, k, 4 * (n / kStep) + lane_index() % 4);
      TORCH_EXT_UNROLL
      for (int c = 0; c < Vector<E>::kCount; ++c) TORCH_EXT_UNROLL
      for (int half = 0; half < 2; ++half)
        out.x[kFirst + n + c / 2][2 * half + c % 2] += weight[half] * right.x[c];
    }
  }
}

// The columns of `out` that belong to its chunk number `index`, += w x; `columns` of them exist.
template <class E, int kChunk = 0, int kKeys, int kColumns>
TORCH_EXT_DEVICE void multiply(Fragment<AccumulateOf<E>, kColumns>& out, const Weights<E, kKeys>& w,
                               const unsigned char* chunk, int index, int columns) {
  constexpr int kFirst = kChunk * (kChunkColumns<E> / 8);
  if constexpr (kFirst < kColumns / 8) {
    if (index != kChunk)
      multiply<E, kChunk + 1>(out, w, chunk, index, columns);
    else if constexpr (kByMatrixUnit<E>)
      multiply_by_matrix_unit<E, kFirst>(out, w, chunk, columns);
    else
      multiply_by_number<E, kFirst>(out, w, chunk);
  }
}

// The same without the hidden entries, whose numbers may be inf or NaN: 0 times them would be NaN.
// Slow, hence for tasks whose results were not finite. `w` and `part` lie in local memory: they are
// indexed at run time.
template <class E, int kKeys>
TORCH_EXT_DEVICE_FUNCTION void multiply_visible_part(
    Fragment<AccumulateOf<E>, kChunkColumns<E>>& part, const Weights<E, kKeys>& w,
    VisibleBits visible, const unsigned char* chunk) {
  constexpr int kCount = kUnitBytes / sizeof(E);
  const int quad = lane_index() & ~3;
  part.clear();
  TORCH_EXT_KEEP_LOOP
  for (int k = 0; k < kKeys; ++k) TORCH_EXT_KEEP_LOOP
  for (int half = 0; half < 2; ++half) {
    const int source = quad + k % 8 / 2;
    const auto weight = shuffle(w.at(k, half), source);
    const uint32_t bits = shuffle(visible.x, source);
    if (!(VisibleBits{bits}.get(k / 8, 2 * half + k % 2))) continue;
    TORCH_EXT_KEEP_LOOP
    for (int n = 0; n < kChunkColumns<E> / 8; ++n)
      for (int pair = 0; pair < 2; ++pair) {
        const int column = output_column<E>(n, pair);
        const E x = reinterpret_cast<const E*>(unit_of(chunk, k, column / kCount))[column % kCount];
        part.x[n][2 * half + pair] += weight * to_float(x);
      }
  }
}
template <class E, int kKeys, int kColumns>
TORCH_EXT_DEVICE void multiply_visible(Fragment<AccumulateOf<E>, kColumns>& out,
                                       const Weights<E, kKeys>& w, VisibleBits visible,
                                       const unsigned char* chunk, int index) {
  constexpr int kChunkEights = kChunkColumns<E> / 8;
  const Weights<E, kKeys> copy = w;
  Fragment<AccumulateOf<E>, kChunkColumns<E>> part;
  multiply_visible_part<E>(part, copy, visible, chunk);
  TORCH_EXT_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) TORCH_EXT_UNROLL
  for (int c = 0; c < 4; ++c)
    if (n / kChunkEights == index) out.x[n][c] += part.x[n % kChunkEights][c];
}

}  // namespace torch_ext::cuda
