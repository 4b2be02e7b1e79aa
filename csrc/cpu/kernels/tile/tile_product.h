// The one matrix product of all kernels: C (=, +=) A B on tiles that fit the caches.
//
// An element E of A and B is a number, or a Pair of bfloat16 that fma multiplies and adds at once
// (pairs.h): kTerms<E> consecutive terms of a sum in the type SumOf<E> of C. Depths and strides
// count elements.
//
// A is read one element at a time and broadcast, so it may have any strides: the same code
// multiplies by a tile or by its transpose, and keys and values are used where they lie, without
// packing. B and C are rows of whole vectors. Every element of A B is a sum of chains of kChain
// fused multiply-adds that start at 0, whatever the shape of the register block: the bits depend on
// the operands alone. Chains are added to C as they end, so that long sums have the error of a
// blocked sum, not of one long chain.
//
// Between its blocks a product asks for what the caller says will be needed next (ahead.h).
#pragma once

#include "cpu/kernels/primitives/ahead.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class E>
constexpr int kTerms = 1;

template <class E>
struct SumType {
  using Type = E;
};
template <class E>
using SumOf = typename SumType<E>::Type;

// How many elements hold `terms` terms of a sum.
template <class E>
TORCH_EXT_INLINE int64_t elements(int64_t terms) {
  return (terms + kTerms<E> - 1) / kTerms<E>;
}

// One term of an element.
template <class T>
TORCH_EXT_INLINE T term_of(T x, int64_t) {
  return x;
}

// The element with 0 for one of its terms.
template <class T>
TORCH_EXT_INLINE T without_term(T, int64_t) {
  return 0;
}

// A (rows x depth): element (i, k) at data[i * row + k * depth].
template <class E>
struct Broadcast {
  const E* data;
  int64_t row;
  int64_t depth;
};

// Rows of vectors: element (k, j) at data[k * stride + j], readable up to a whole number of
// vectors.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
};

// A block of C in registers: `rows` rows of a panel `vectors` wide. It needs rows * vectors sums,
// `vectors` vectors of B and one element of A; a step is rows * vectors multiply-adds and rows +
// vectors loads, two of each a cycle. At least 8 sums hide the latency of a multiply-add. The same
// for numbers and pairs: what counts is the width of a vector.
struct BlockShape {
  int vectors, rows;
};
#ifdef __AVX512F__
constexpr BlockShape kBlocks[] = {
    {4, 6},   // 29 of 32 registers, 12 cycles of multiply-adds against 5 of loads
    {3, 8},   // 28 registers, 12 against 5.5
    {2, 12},  // 27 registers, 12 against 7
    {1, 12},  // limited by loads: 6.5 cycles for 6 of multiply-adds, however many rows
};
#else
constexpr BlockShape kBlocks[] = {
    {2, 6},  // 15 of 16 registers, 6 cycles of multiply-adds against 4 of loads
    {1, 8},  // limited by loads: 4.5 cycles for 4 of multiply-adds, however many rows
};
#endif
constexpr int kPanelVectors = kBlocks[0].vectors;
constexpr int block_rows(int vectors) { return kBlocks[kPanelVectors - vectors].rows; }

// What else is done to C while it is in registers, each where it is given.
template <class T>
struct Epilogue {
  const T* factor = nullptr;  // (rows): what each row is multiplied by
  T* largest = nullptr;       // (columns): becomes the larger of what it was and of its column
};

template <class E, int kRows, int kVectors, bool kAccumulate>
TORCH_EXT_INLINE void multiply_block(int64_t depth, Broadcast<E> a, Rows<const E> b,
                                     Rows<SumOf<E>> c, Epilogue<SumOf<E>> epilogue) {
  using T = SumOf<E>;
  constexpr int kSize = Vec<T>::kSize;
  Vec<T> sum[kRows][kVectors];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    TORCH_EXT_UNROLL
    for (int j = 0; j < kVectors; ++j) sum[i][j] = Vec<T>::fill(0);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<E> row[kVectors];
    TORCH_EXT_UNROLL
    for (int j = 0; j < kVectors; ++j) row[j] = Vec<E>::load(b.data + j * kSize);
    TORCH_EXT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Vec<E> element = Vec<E>::fill(a.data[i * a.row]);
      TORCH_EXT_UNROLL
      for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(element, row[j], sum[i][j]);
    }
    a.data += a.depth;
    b.data += b.stride;
  }
  TORCH_EXT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    TORCH_EXT_UNROLL
    for (int j = 0; j < kVectors; ++j) {
      T* out = c.data + i * c.stride + j * kSize;
      if constexpr (kAccumulate) sum[i][j] = Vec<T>::load(out) + sum[i][j];
      if (epilogue.factor) sum[i][j] = sum[i][j] * Vec<T>::fill(epilogue.factor[i]);
      sum[i][j].store(out);
    }
  }
  if (!epilogue.largest) return;
  TORCH_EXT_UNROLL
  for (int j = 0; j < kVectors; ++j) {
    T* largest = epilogue.largest + j * kSize;
    Vec<T> column = Vec<T>::load(largest);
    TORCH_EXT_UNROLL
    for (int i = 0; i < kRows; ++i) column = max(sum[i][j], column);
    column.store(largest);
  }
}

// One panel of columns, from top to bottom in blocks of block_rows, then 4, 2 and 1 rows.
template <class E, int kVectors, bool kAccumulate>
__attribute__((noinline)) void multiply_panel(int64_t rows, int64_t depth, Broadcast<E> a,
                                              Rows<const E> b, Rows<SumOf<E>> c, Ahead* ahead,
                                              Epilogue<SumOf<E>> epilogue) {
  const auto advance = [&](int64_t n) {
    a.data += n * a.row;
    c.data += n * c.stride;
    if (epilogue.factor) epilogue.factor += n;
    rows -= n;
  };
  constexpr int kBlockRows = block_rows(kVectors);
  while (rows >= kBlockRows) {
    if (ahead) ahead->fetch();
    multiply_block<E, kBlockRows, kVectors, kAccumulate>(depth, a, b, c, epilogue);
    advance(kBlockRows);
  }
  while (rows >= 4) {
    multiply_block<E, 4, kVectors, kAccumulate>(depth, a, b, c, epilogue);
    advance(4);
  }
  if (rows >= 2) {
    multiply_block<E, 2, kVectors, kAccumulate>(depth, a, b, c, epilogue);
    advance(2);
  }
  if (rows >= 1) multiply_block<E, 1, kVectors, kAccumulate>(depth, a, b, c, epilogue);
}

// The panels of one chain.
template <class E, bool kAccumulate>
void multiply_chain(int64_t rows, int64_t columns, int64_t depth, Broadcast<E> a, Rows<const E> b,
                    Rows<SumOf<E>> c, Ahead* ahead, Epilogue<SumOf<E>> epilogue) {
  constexpr int kSize = Vec<SumOf<E>>::kSize;
  int64_t vectors = columns / kSize;
  const auto advance = [&](int64_t n) {
    b.data += n * kSize;
    c.data += n * kSize;
    if (epilogue.largest) epilogue.largest += n * kSize;
    vectors -= n;
  };
  while (vectors >= kPanelVectors) {
    multiply_panel<E, kPanelVectors, kAccumulate>(rows, depth, a, b, c, ahead, epilogue);
    advance(kPanelVectors);
  }
  if constexpr (kPanelVectors > 2) {
    if (vectors == 3)
      return multiply_panel<E, 3, kAccumulate>(rows, depth, a, b, c, ahead, epilogue);
    if (vectors == 2)
      return multiply_panel<E, 2, kAccumulate>(rows, depth, a, b, c, ahead, epilogue);
  }
  if (vectors == 1) multiply_panel<E, 1, kAccumulate>(rows, depth, a, b, c, ahead, epilogue);
}

constexpr int64_t kChain = 64;

// C (rows x columns) = or += A (rows x depth) B (depth x columns). columns is a multiple of
// Vec<SumOf<E>>::kSize. `ahead`: what is fetched meanwhile.
template <class E, bool kAccumulate>
void tile_product(int64_t rows, int64_t columns, int64_t depth, Broadcast<E> a, Rows<const E> b,
                  Rows<SumOf<E>> c, Ahead* ahead = nullptr, Epilogue<SumOf<E>> epilogue = {}) {
  constexpr int64_t kSteps = kChain / kTerms<E>;
  const auto chain = [&](int64_t k, auto accumulate) {
    const bool is_last = depth - k <= kSteps;
    multiply_chain<E, accumulate.value>(
        rows, columns, is_last ? depth - k : kSteps, {a.data + k * a.depth, a.row, a.depth},
        {b.data + k * b.stride, b.stride}, c, ahead, is_last ? epilogue : Epilogue<SumOf<E>>{});
  };
  chain(0, Bool<kAccumulate>());
  for (int64_t k = kSteps; k < depth; k += kSteps) chain(k, Bool<true>());
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
