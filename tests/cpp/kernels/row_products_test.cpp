// Products of few rows with rows of every storage type against sums in double: every number of
// rows, keys and columns around those of blocks, memory behind the elements out of bounds, NaN
// between them.
#include "cpu/kernels/few_queries/row_products.h"

#include <gtest/gtest.h>

#include "../helpers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T_, class S_, DType kDType_>
struct Stored {
  using T = T_;
  using S = S_;
  static constexpr DType kDType = kDType_;
};

template <class P>
class RowProductsTest : public testing::Test {
 protected:
  using T = typename P::T;
  using S = typename P::S;
  static constexpr int64_t kMostRows = 7, kGap = 3;

  // Rows (rows, cols) that end where memory does; small whole numbers, exact in every type.
  StoredRows random_rows(int64_t rows, int64_t cols, bool is_strided) {
    b_.poison();
    const int64_t row = is_strided ? 1 : cols + kGap, col = is_strided ? rows + kGap : 1;
    const int64_t count = rows == 0 || cols == 0 ? 0 : 1 + (rows - 1) * row + (cols - 1) * col;
    S* data = b_.template last<S>(count);
    values_.assign(static_cast<size_t>(rows * cols), 0);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        const auto value = static_cast<float>(random_.below(17) - 8);
        values_[static_cast<size_t>(r * cols + c)] = value;
        narrow_to(value, data + r * row + c * col);
      }
    operand_.data = data;
    operand_.dtype = P::kDType;
    operand_.row_stride = row;
    operand_.col_stride = col;
    return {operand_, 0, 0, rows, cols};
  }
  static void narrow_to(float x, double* out) { *out = x; }
  template <class U>
  static void narrow_to(float x, U* out) {
    narrow(x, out);
  }

  // (rows, cols) with `stride`, zero beyond `cols`.
  std::vector<T> random_left(int64_t rows, int64_t cols, int64_t stride) {
    std::vector<T> a(static_cast<size_t>(rows * stride), T(0));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        a[static_cast<size_t>(r * stride + c)] = static_cast<T>(random_.below(9) - 4);
    return a;
  }

  test::Random random_{11};
  test::FencedMemory b_{1 << 20}, buffer_{1 << 20};
  std::vector<double> values_;
  Operand operand_;
};
using Storages =
    testing::Types<Stored<double, double, DType::Float64>, Stored<float, float, DType::Float32>,
                   Stored<float, BFloat16, DType::BFloat16>,
                   Stored<float, Float16, DType::Float16>>;
TYPED_TEST_SUITE(RowProductsTest, Storages);

constexpr int64_t kColumns[] = {0,  1,  2,  3,  4,  5,   6,   7,   8,  9,
                                15, 16, 17, 31, 33, 127, 128, 129, 300};
constexpr int64_t kKeys[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 33};

TYPED_TEST(RowProductsTest, ProductsOfRows) {
  using T = typename TypeParam::T;
  for (const int64_t cols : kColumns)
    for (const int64_t keys : kKeys)
      for (int64_t rows = 1; rows <= this->kMostRows; ++rows) {
        const int64_t stride = round_up(cols, Vec<T>::kSize), width = round_up(keys, 8);
        const std::vector<T> a = this->random_left(rows, cols, stride);
        const StoredRows b = this->random_rows(keys, cols, rows % 3 == 0);
        this->buffer_.poison();
        std::vector<T> out(static_cast<size_t>(rows * width), T(NAN));
        row_products<T>(rows, {a.data(), stride}, b, {out.data(), width},
                        this->buffer_.template last<T>(keys * stride));
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < keys; ++j) {
            double want = 0;
            for (int64_t c = 0; c < cols; ++c)
              want += double(a[i * stride + c]) * this->values_[j * cols + c];
            ASSERT_EQ(out[i * width + j], want) << rows << " " << keys << " " << cols;
          }
      }
}

TYPED_TEST(RowProductsTest, WeightedSumsOfRows) {
  using T = typename TypeParam::T;
  for (const int64_t cols : kColumns)
    for (const int64_t keys : kKeys)
      for (int64_t rows = 1; rows <= this->kMostRows; ++rows) {
        const int64_t stride = round_up(cols, Vec<T>::kSize);
        const std::vector<T> w = this->random_left(rows, keys, keys);
        const StoredRows b = this->random_rows(keys, cols, rows % 3 == 0);
        std::vector<T> c = this->random_left(rows, cols, stride);
        const std::vector<T> before = c;
        this->buffer_.poison();
        weighted_rows<T>(rows, {w.data(), keys}, b, {c.data(), stride},
                         this->buffer_.template last<T>(keys * stride));
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t e = 0; e < cols; ++e) {
            double want = before[i * stride + e];
            for (int64_t j = 0; j < keys; ++j)
              want += double(w[i * keys + j]) * this->values_[j * cols + e];
            ASSERT_EQ(c[i * stride + e], want) << rows << " " << keys << " " << cols;
          }
      }
}

// A row's product must not depend on the rows and keys beside it: a group, or a longer chunk, gives
// each row the bits that it has alone.
TYPED_TEST(RowProductsTest, BitsOfAProductDependOnItsTwoRowsAlone) {
  using T = typename TypeParam::T;
  constexpr int64_t kCols = 300, kCount = 21;
  const int64_t stride = round_up(kCols, Vec<T>::kSize), width = 24;
  std::vector<T> a = this->random_left(this->kMostRows, kCols, stride);
  for (T& x : a) x *= static_cast<T>(0.1);  // no longer exact
  const StoredRows b = this->random_rows(kCount, kCols, false);
  std::vector<T> all(static_cast<size_t>(this->kMostRows * width)), one(8);
  row_products<T>(this->kMostRows, {a.data(), stride}, b, {all.data(), width}, nullptr);
  for (int64_t i = 0; i < this->kMostRows; ++i)
    for (int64_t j = 0; j < kCount; ++j) {
      row_products<T>(1, {a.data() + i * stride, stride}, {b.x, 0, j, 1, kCols}, {one.data(), 8},
                      nullptr);
      ASSERT_EQ(one[0], all[i * width + j]) << i << " " << j;
    }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
