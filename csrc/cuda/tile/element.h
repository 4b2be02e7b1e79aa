// What the type of query, key and value decides.
#pragma once

#include "attention/problem.h"
#include "cuda/primitives/numbers.h"
#include "cuda/primitives/thread.h"

namespace torch_ext::cuda {

// kByMatrixUnit: products by mma.sync, or by multiply-adds of single numbers, exact in the type.
// kTile: rows of a tile on the side that a kernel walks along; kNarrowTile: where it holds four
// tiles of products in registers, beside a result. What is multiplied number by number is unrolled
// over them; fragments of doubles take twice the registers.
template <class E>
struct ElementTraits;
template <>
struct ElementTraits<BFloat16> {
  using Accumulate = float;
  static constexpr DType kDType = DType::BFloat16;
  static constexpr bool kByMatrixUnit = true;
  static constexpr int kTile = 64, kNarrowTile = 32;
};
template <>
struct ElementTraits<Float16> {
  using Accumulate = float;
  static constexpr DType kDType = DType::Float16;
  static constexpr bool kByMatrixUnit = true;
  static constexpr int kTile = 64, kNarrowTile = 32;
};
template <>
struct ElementTraits<float> {
  using Accumulate = float;
  static constexpr DType kDType = DType::Float32;
  static constexpr bool kByMatrixUnit = false;
  static constexpr int kTile = 32, kNarrowTile = 16;
};
template <>
struct ElementTraits<double> {
  using Accumulate = double;
  static constexpr DType kDType = DType::Float64;
  static constexpr bool kByMatrixUnit = false;
  static constexpr int kTile = 32, kNarrowTile = 16;
};

template <class E>
using AccumulateOf = typename ElementTraits<E>::Accumulate;
template <class E>
constexpr bool kByMatrixUnit = ElementTraits<E>::kByMatrixUnit;
template <class E>
constexpr int kTile = ElementTraits<E>::kTile;
template <class E>
constexpr int kNarrowTile = ElementTraits<E>::kNarrowTile;

template <class T>
constexpr T kInfinity = static_cast<T>(__builtin_huge_val());

// Matrices come to shared memory in chunks of columns, 128 bytes of each row.
constexpr int kChunkBytes = 128;
constexpr int kUnitBytes = 16;  // what one instruction copies
constexpr int kUnits = kChunkBytes / kUnitBytes;
template <class E>
constexpr int kChunkColumns = kChunkBytes / static_cast<int>(sizeof(E));

template <class E>
TORCH_EXT_INLINE int chunks_of(int64_t columns) {
  return static_cast<int>((columns + kChunkColumns<E> - 1) / kChunkColumns<E>);
}

// Element `offset` of an operand of any dtype. The branch is the same in all threads.
template <class T>
TORCH_EXT_DEVICE T load(const Operand& x, int64_t offset) {
  switch (x.dtype) {
    case DType::Float64:
      return static_cast<T>(static_cast<const double*>(x.data)[offset]);
    case DType::Float32:
      return static_cast<T>(static_cast<const float*>(x.data)[offset]);
    case DType::BFloat16:
      return static_cast<T>(to_float(static_cast<const BFloat16*>(x.data)[offset]));
    default:
      return static_cast<T>(to_float(static_cast<const Float16*>(x.data)[offset]));
  }
}

}  // namespace torch_ext::cuda
