// Sums a tile of score gradients into the gradient of a bias, over the dimensions the bias was
// broadcast along.
#pragma once

#include "cpu/kernels/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// out(i, j) += ds(i, j), out(i, j) at out[i * row + j * col] with stride 0 where broadcast. ds lies
// transposed, keys down; entries beyond `queries` are ignored. `spare` holds the tile the other way
// round.
template <class T>
void add_bias_gradient(const TileRange& t, const T* ds, T* out, int64_t row, int64_t col,
                       T* spare) {
  out += t.query * row + t.key * col;
  if (row != 0 && col != 0) {
    transpose_tile<T, T>({ds, t.width, 1}, t.keys, t.queries, spare, t.keys);
    for (int64_t i = 0; i < t.queries; ++i) {
      const T* from = spare + i * t.keys;
      if (col == 1)
        for (int64_t j = 0; j < t.keys; ++j) out[i * row + j] += from[j];
      else
        for (int64_t j = 0; j < t.keys; ++j) out[i * row + j * col] += from[j];
    }
  } else if (row != 0) {
    for (int64_t j = 0; j < t.keys; ++j)
      for (int64_t i = 0; i < t.queries; ++i) out[i * row] += ds[j * t.width + i];
  } else {
    for (int64_t j = 0; j < t.keys; ++j) {
      T sum = 0;
      for (int64_t i = 0; i < t.queries; ++i) sum += ds[j * t.width + i];
      out[j * col] += sum;
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
