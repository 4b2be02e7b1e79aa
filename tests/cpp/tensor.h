// A tensor of any dtype and layout in memory that notices misuse, and its view as an Operand.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "attention/problem.h"
#include "helpers.h"

namespace torch_ext::test {

enum class Layout {
  kContiguous,   // (B, H, rows, cols)
  kHeadsInside,  // (B, rows, H, cols)
  kTransposed,   // (B, H, cols, rows): columns are not contiguous
  kGaps,         // nothing is contiguous, NaN between the elements
  kFarApart,     // (B, H, rows, cols), rows more than 2^31 elements apart; results start as 0
};

// A tensor (B, H, rows, cols) of any dtype. Dimensions of size 1 have stride 0 and so broadcast.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::vector<int64_t> sizes, Layout layout = Layout::kContiguous)
      : dtype_(dtype), sizes_(std::move(sizes)), strides_(4) {
    std::vector<int> order = {3, 2, 1, 0};  // from the innermost dimension out
    if (layout == Layout::kHeadsInside) order = {3, 1, 2, 0};
    if (layout == Layout::kTransposed) order = {2, 3, 1, 0};
    const int64_t gap = layout == Layout::kGaps ? 3 : 0;
    int64_t step = 1 + gap, extent = 1;
    for (const int d : order) {
      if (layout == Layout::kFarApart && d == 2) step = (int64_t{1} << 31) + 8;
      if (sizes_[d] == 1) continue;
      strides_[d] = step;
      extent += (sizes_[d] - 1) * step;
      step = step * sizes_[d] + gap;
    }
    count_ = std::count(sizes_.begin(), sizes_.end(), 0) ? 0 : extent;
    is_sparse_ = layout == Layout::kFarApart;
    memory_ = std::make_shared<FencedMemory>(count_ * element_size(), is_sparse_);
  }

  explicit operator bool() const { return memory_ != nullptr; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  DType dtype() const { return dtype_; }

  double get(int64_t b, int64_t h, int64_t r, int64_t c) const {
    const unsigned char* at = memory_->begin() + offset(b, h, r, c) * element_size();
    switch (dtype_) {
      case DType::Float64:
        return read<double>(at);
      case DType::Float32:
        return read<float>(at);
      case DType::BFloat16:
        return decode_bfloat16(read<uint16_t>(at));
      case DType::Float16:
        return decode_float16(read<uint16_t>(at));
      case DType::Bool:
        return read<uint8_t>(at);
      case DType::Int64:
        return static_cast<double>(read<int64_t>(at));
    }
    return kNan;
  }
  void set(int64_t b, int64_t h, int64_t r, int64_t c, double x) {
    unsigned char* at = memory_->begin() + offset(b, h, r, c) * element_size();
    switch (dtype_) {
      case DType::Float64:
        return write(at, x);
      case DType::Float32:
        return write(at, static_cast<float>(x));
      case DType::BFloat16:
        return write(at, encode16(x, 8));
      case DType::Float16:
        return write(at, encode16(x, 5));
      case DType::Bool:
        return write(at, static_cast<uint8_t>(x != 0));
      case DType::Int64:
        return write(at, static_cast<int64_t>(x));
    }
  }
  template <class Use>  // use(b, h, r, c)
  void for_each(const Use& use) const {
    for (int64_t b = 0; b < sizes_[0]; ++b)
      for (int64_t h = 0; h < sizes_[1]; ++h)
        for (int64_t r = 0; r < sizes_[2]; ++r)
          for (int64_t c = 0; c < sizes_[3]; ++c) use(b, h, r, c);
  }
  template <class Value>  // value()
  Tensor& fill(const Value& value) {
    for_each([&](int64_t b, int64_t h, int64_t r, int64_t c) { set(b, h, r, c, value()); });
    return *this;
  }

  // `split` shows the batch as (B / 2, 2).
  Operand operand(bool split = false) const {
    Operand x;
    if (!memory_) return x;
    x.data = memory_->begin();
    x.dtype = dtype_;
    const std::vector<int64_t> leading =
        split ? std::vector<int64_t>{2 * strides_[0], strides_[0], strides_[1]}
              : std::vector<int64_t>{strides_[0], strides_[1]};
    std::copy(leading.begin(), leading.end(), x.leading_strides);
    x.row_stride = strides_[2];
    x.col_stride = strides_[3];
    return x;
  }

  // Whether nothing was written between, before or after the elements. Nobody looks at terabytes.
  bool gaps_untouched() const {
    if (is_sparse_) return true;
    std::vector<bool> elements(memory_->size());
    for_each([&](int64_t b, int64_t h, int64_t r, int64_t c) {
      std::fill_n(elements.begin() + offset(b, h, r, c) * element_size(), element_size(), true);
    });
    return memory_->untouched_except(elements);
  }
  std::vector<unsigned char> bytes() const {
    return {memory_->begin(), memory_->begin() + memory_->size()};
  }

 private:
  int64_t element_size() const { return bytes_of(dtype_); }
  int64_t offset(int64_t b, int64_t h, int64_t r, int64_t c) const {
    return b * strides_[0] + h * strides_[1] + r * strides_[2] + c * strides_[3];
  }
  template <class S>
  static S read(const unsigned char* at) {
    S x;
    std::memcpy(&x, at, sizeof x);
    return x;
  }
  template <class S>
  static void write(unsigned char* at, S x) {
    std::memcpy(at, &x, sizeof x);
  }

  DType dtype_ = DType::Float32;
  std::vector<int64_t> sizes_, strides_;
  int64_t count_ = 0;
  bool is_sparse_ = false;
  std::shared_ptr<FencedMemory> memory_;
};

}  // namespace torch_ext::test
