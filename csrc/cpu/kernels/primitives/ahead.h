// Memory brought into the caches before it is needed: transposition and products ask for a few
// lines of many rows at a time, which come one by one where they have to come from memory.
#pragma once

#include "cpu/kernels/primitives/numbers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Rows of a head as they lie in memory: `rows` times `bytes`, `stride` bytes apart. What lies
// without gaps is one long row; there are no rows where the elements of a row are apart.
struct Lines {
  const char* start;
  int64_t rows, bytes, stride;
  bool is_written = false;

  TORCH_EXT_INLINE Lines() = default;
  TORCH_EXT_INLINE Lines(const Operand& x, int64_t offset, int64_t row, int64_t row_count,
                         int64_t cols) {
    const int64_t size = bytes_of(x.dtype);
    start = static_cast<const char*>(x.data) + (offset + row * x.row_stride) * size;
    rows = x && x.col_stride == 1 ? row_count : 0;
    bytes = cols * size;
    stride = x.row_stride * size;
    if (stride != bytes || rows == 0) return;
    bytes *= rows;
    rows = 1;
  }
};

// Reads rows [row, row + rows) of a head now, line after line: of many prefetches at a time the
// processor would drop most.
TORCH_EXT_INLINE void read_ahead(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                                 int64_t cols) {
  const Lines lines(x, offset, row, rows, cols);
  for (int64_t r = 0; r < lines.rows; ++r)
    for (int64_t at = 0; at < lines.bytes; at += 64)
      (void)*static_cast<const volatile char*>(lines.start + r * lines.stride + at);
}

// What a thread needs after the tile at hand. The register blocks of its products ask for a few
// lines each (tile_product.h), so that memory and arithmetic are at work at the same time. Lines
// that will be written are taken from the caches of other threads at once, not when they are.
class Ahead {
 public:
  TORCH_EXT_INLINE void clear() { first_ = count_ = at_ = 0; }

  // Rows [row, row + rows) of a head, `cols` wide; what does not fit the list is left out.
  TORCH_EXT_INLINE void will_read(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                                  int64_t cols) {
    if (first_ == count_) clear();
    if (count_ == kMost) return;
    lines_[count_] = Lines(x, offset, row, rows, cols);
    if (lines_[count_].rows > 0 && cols > 0) ++count_;
  }
  TORCH_EXT_INLINE void will_write(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                                   int64_t cols) {
    const int64_t index = first_ == count_ ? 0 : count_;
    will_read(x, offset, row, rows, cols);
    if (count_ > index) lines_[index].is_written = true;
  }

  // Asks for the next few lines.
  TORCH_EXT_INLINE void fetch() {
    if (first_ < count_) fetch_lines();
  }

  // use(address, whether it will be written) for the next lines, at most `most` of them.
  template <class Use>
  TORCH_EXT_INLINE void take(int most, const Use& use) {
    while (most > 0 && first_ < count_) {
      Lines& lines = lines_[first_];
      for (; most > 0 && at_ < lines.bytes; --most, at_ += 64)
        use(lines.start + at_, lines.is_written);
      if (at_ < lines.bytes) return;
      at_ = 0;
      lines.start += lines.stride;
      if (--lines.rows == 0) ++first_;
    }
  }

 private:
  static constexpr int kMost = 16;
  // A register block takes longer with longer vectors.
  static constexpr int kAtOnce = 2 * Vec<float>::kSize;

  __attribute__((noinline)) void fetch_lines() {
    take(kAtOnce, [](const char* line, bool is_written) {
      if (is_written)
        __builtin_prefetch(line, 1);
      else
        __builtin_prefetch(line);
    });
  }

  Lines lines_[kMost];
  int64_t first_ = 0, count_ = 0;
  int64_t at_ = 0;  // bytes of the row at hand that were taken
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
