// What the second order keeps of each row, for all heads: (B * H, 3, N) numbers.
#pragma once

#include "cpu/kernels/numbers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
struct RowStatistics {
  T* start = nullptr;
  int64_t rows = 0;  // N

  TORCH_EXT_INLINE T* delta(int64_t head) const { return start + head * 3 * rows; }
  TORCH_EXT_INLINE T* mu(int64_t head) const { return start + (head * 3 + 1) * rows; }
  TORCH_EXT_INLINE T* epsilon(int64_t head) const { return start + (head * 3 + 2) * rows; }
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
