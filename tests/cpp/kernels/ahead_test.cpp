// What is brought into the caches: every line of the rows asked for, and nothing behind them.
#include "cpu/kernels/primitives/ahead.h"

#include <gtest/gtest.h>

#include <vector>

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

alignas(64) char data[8192];

Operand operand(DType dtype, int64_t row_stride) {
  Operand x;
  x.data = data;
  x.dtype = dtype;
  x.row_stride = row_stride;
  x.col_stride = 1;
  return x;
}

// Bytes from the start of the data.
std::vector<int64_t> take(Ahead& ahead, int most) {
  std::vector<int64_t> found;
  ahead.take(most, [&](const char* line, bool) { found.push_back(line - data); });
  return found;
}
std::vector<int64_t> lines(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                           int64_t cols) {
  Ahead ahead;
  ahead.will_read(x, offset, row, rows, cols);
  return take(ahead, 1000);
}
using Found = std::vector<int64_t>;

TEST(AheadTest, EveryLineOfTheRowsInTheOrderTheyLieIn) {
  EXPECT_EQ(lines(operand(DType::Float32, 48), 80, 1, 2, 40),
            (Found{512, 576, 640, 704, 768, 832}));
  EXPECT_EQ(lines(operand(DType::BFloat16, 48), 0, 0, 2, 40), (Found{0, 64, 96, 160}));
  EXPECT_EQ(lines(operand(DType::Float64, 9), 0, 1, 1, 9), (Found{72, 136}));
  EXPECT_EQ(lines(operand(DType::Bool, 100), 0, 0, 1, 100), (Found{0, 64}));
}

TEST(AheadTest, RowsWithoutGapsAreOne) {
  EXPECT_EQ(lines(operand(DType::Float32, 8), 0, 1, 5, 8), (Found{32, 96, 160}));
}

TEST(AheadTest, NothingWhereThereAreNoWholeRows) {
  Operand absent = operand(DType::Float32, 8);
  absent.data = nullptr;
  EXPECT_TRUE(lines(absent, 0, 0, 3, 8).empty());
  EXPECT_TRUE(lines(operand(DType::Float32, 8), 0, 0, 0, 8).empty());
  EXPECT_TRUE(lines(operand(DType::Float32, 8), 0, 0, 3, 0).empty());
  Operand apart = operand(DType::Float32, 16);
  apart.col_stride = 2;
  EXPECT_TRUE(lines(apart, 0, 0, 3, 8).empty());
}

TEST(AheadTest, AFewAtATimeOneOperandAfterTheOther) {
  Ahead ahead;
  EXPECT_TRUE(take(ahead, 3).empty());
  ahead.will_read(operand(DType::Float32, 64), 0, 0, 2, 32);
  ahead.will_read(operand(DType::Float32, 16), 1024, 0, 1, 16);
  EXPECT_EQ(take(ahead, 3), (Found{0, 64, 256}));
  EXPECT_EQ(take(ahead, 3), (Found{320, 4096}));
  EXPECT_TRUE(take(ahead, 3).empty());
  ahead.will_read(operand(DType::Float32, 64), 0, 0, 2, 32);
  EXPECT_EQ(take(ahead, 1), (Found{0}));
  ahead.clear();
  EXPECT_TRUE(take(ahead, 3).empty());
  ahead.will_read(operand(DType::Float32, 64), 0, 3, 1, 16);
  EXPECT_EQ(take(ahead, 3), (Found{768}));
}

TEST(AheadTest, LinesThatWillBeWrittenAreMarked) {
  Ahead ahead;
  const Operand x = operand(DType::Float32, 16);
  const auto marks = [&] {
    std::vector<bool> found;
    ahead.take(1000, [&](const char*, bool is_written) { found.push_back(is_written); });
    return found;
  };
  ahead.will_write(x, 0, 0, 2, 16);
  ahead.will_read(x, 0, 2, 1, 16);
  ahead.will_write(x, 0, 0, 0, 16);
  ahead.will_read(x, 0, 3, 1, 16);
  EXPECT_EQ(marks(), (std::vector<bool>{true, true, false, false}));
  ahead.will_read(x, 0, 0, 1, 16);
  EXPECT_EQ(marks(), (std::vector<bool>{false}));
  ahead.will_write(x, 0, 0, 1, 16);
  EXPECT_EQ(marks(), (std::vector<bool>{true}));
}

TEST(AheadTest, WhatDoesNotFitTheListIsLeftOut) {
  Ahead ahead;
  for (int i = 0; i < 1000; ++i) ahead.will_read(operand(DType::Float32, 16), 0, 0, 1, 16);
  const size_t kept = take(ahead, 1000).size();
  EXPECT_GT(kept, 8u);
  EXPECT_LT(kept, 100u);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
