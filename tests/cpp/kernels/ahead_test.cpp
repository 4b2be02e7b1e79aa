// What is brought into the caches: every line of the rows asked for, and nothing behind them.
#include "cpu/kernels/ahead.h"

#include <gtest/gtest.h>

#include <vector>

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

Operand operand(void* data, DType dtype, int64_t row_stride) {
  Operand x;
  x.data = data;
  x.dtype = dtype;
  x.row_stride = row_stride;
  x.col_stride = 1;
  return x;
}

template <class T>
std::vector<int64_t> lines(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                           int64_t cols) {
  std::vector<int64_t> found;  // bytes from the start of the data
  for_each_line<T>(x, offset, row, rows, cols, [&](const char* line) {
    found.push_back(line - static_cast<const char*>(x.data));
  });
  return found;
}

TEST(AheadTest, EveryLineOfTheRowsInTheOrderTheyLieIn) {
  alignas(64) static char data[4096];
  EXPECT_EQ(lines<float>(operand(data, DType::Float32, 40), 80, 1, 2, 40),
            (std::vector<int64_t>{480, 544, 608, 640, 704, 768}));
  EXPECT_EQ(lines<float>(operand(data, DType::BFloat16, 40), 0, 0, 2, 40),
            (std::vector<int64_t>{0, 64, 80, 144}));
  EXPECT_EQ(lines<double>(operand(data, DType::Float64, 9), 0, 1, 1, 9),
            (std::vector<int64_t>{72, 136}));
}

TEST(AheadTest, NothingWhereThereAreNoWholeRows) {
  alignas(64) static char data[4096];
  EXPECT_TRUE(lines<float>(operand(nullptr, DType::Float32, 8), 0, 0, 3, 8).empty());
  EXPECT_TRUE(lines<float>(operand(data, DType::Float32, 8), 0, 0, 0, 8).empty());
  Operand apart = operand(data, DType::Float32, 16);
  apart.col_stride = 2;
  EXPECT_TRUE(lines<float>(apart, 0, 0, 3, 8).empty());
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
