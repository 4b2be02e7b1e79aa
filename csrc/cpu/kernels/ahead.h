// Operands brought into the caches before they are needed, line after line: transposition and
// products ask for a few lines of many rows at a time, which come one by one where they have to
// come from memory.
#pragma once

#include "cpu/kernels/pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Calls use(address) for every cache line of rows [row, row + rows) of a head, `cols` wide, in the
// order they lie in; for none where the elements of a row are apart.
template <class T, class Use>
TORCH_EXT_INLINE void for_each_line(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                                    int64_t cols, const Use& use) {
  if (!x || x.col_stride != 1) return;
  with_storage<T>(x.dtype, [&](auto storage) {
    const auto part = at<decltype(storage)>(x, offset, row);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; c += 64 / static_cast<int64_t>(sizeof storage))
        use(reinterpret_cast<const char*>(part.data + r * part.row + c));
  });
}

// Reads them: of many prefetches at a time the processor would drop most.
template <class T>
void read_ahead(const Operand& x, int64_t offset, int64_t row, int64_t rows, int64_t cols) {
  for_each_line<T>(x, offset, row, rows, cols,
                   [](const char* line) { (void)*static_cast<const volatile char*>(line); });
}

// For rows that are written later.
template <class T>
void prefetch_results(const Operand& x, int64_t offset, int64_t row, int64_t rows, int64_t cols) {
  for_each_line<T>(x, offset, row, rows, cols,
                   [](const char* line) { _mm_prefetch(line, _MM_HINT_T0); });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
