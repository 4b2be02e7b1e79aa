// C = A B bit by bit: every element is a sum of chains of kChain fused multiply-adds, each of which
// starts at 0 and is added to C as a whole, whatever the shape around it. Depths count elements.
#include "cpu/kernels/tile/tile_product.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "elements.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class E>
class TileProductTest : public testing::Test {
 protected:
  using T = SumOf<E>;
  static constexpr int64_t kSteps = kChain / kTerms<E>;  // of a chain
  static constexpr int64_t kLargestBlock = std::ranges::max(kBlocks, {}, &BlockShape::rows).rows;
  static constexpr int64_t kMostRows = 2 * kLargestBlock + 5;
  static constexpr int64_t kMostColumns = 9 * Vec<T>::kSize;
  static constexpr int64_t kStride = kMostColumns + 3;  // of B and C: not a whole number of vectors
  static constexpr int64_t kMostDepth = 2 * kSteps + 1;

  std::vector<T> random(int64_t count) {
    std::vector<T> x(count);
    for (T& value : x) value = static_cast<T>(random_.normal());
    return x;
  }
  std::vector<E> random_elements(int64_t count) {
    std::vector<E> x(count);
    for (E& element : x) {
      T terms[kTerms<E>];
      for (T& term : terms) term = Terms<E>::rounded(random_.normal());
      element = Terms<E>::element(terms, 1);
    }
    return x;
  }

  // a (kMostRows x depth), b (depth x kMostColumns), c (kMostRows x kMostColumns).
  static void add_chains(int64_t depth, const std::vector<E>& a, const std::vector<E>& b,
                         std::vector<T>& c) {
    for (int64_t i = 0; i < kMostRows; ++i)
      for (int64_t j = 0; j < kMostColumns; ++j)
        for (int64_t begin = 0; begin < depth; begin += kSteps) {
          T chain = 0;
          for (int64_t k = begin; k < std::min(depth, begin + kSteps); ++k)
            chain = Terms<E>::fma(a[i * depth + k], b[k * kMostColumns + j], chain);
          c[i * kMostColumns + j] += chain;
        }
  }

  // Both layouts of A, with a NaN after every element.
  template <bool kAccumulate>
  void expect_product(int64_t rows, int64_t columns, int64_t depth, const std::vector<E>& a,
                      const std::vector<E>& b, const std::vector<T>& before,
                      const std::vector<T>& expected) {
    b_.poison();
    E* b_rows = b_.template last<E>(depth == 0 ? 0 : (depth - 1) * kStride + columns);
    for (int64_t k = 0; k < depth; ++k)
      std::copy_n(&b[k * kMostColumns], columns, b_rows + k * kStride);
    for (const bool transposed : {false, true}) {
      const Broadcast<E> strides{nullptr, transposed ? 2 : 2 * depth + 1,
                                 transposed ? 2 * kMostRows + 1 : 2};
      a_.poison();
      E* elements = a_.template last<E>(
          depth == 0 ? 0 : 1 + (rows - 1) * strides.row + (depth - 1) * strides.depth);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < depth; ++k)
          elements[i * strides.row + k * strides.depth] = a[i * depth + k];

      c_.poison();
      T* c = c_.template last<T>((rows - 1) * kStride + columns);
      std::vector<bool> written(c_.size());
      for (int64_t i = 0; i < rows; ++i) {
        if (kAccumulate) std::copy_n(&before[i * kMostColumns], columns, c + i * kStride);
        const auto start = reinterpret_cast<unsigned char*>(c + i * kStride) - c_.begin();
        std::fill_n(written.begin() + start, columns * sizeof(T), true);
      }
      std::vector<T> largest(before.begin(), before.begin() + columns);
      const std::vector<T> factor = random(rows);
      tile_product<E, kAccumulate>(
          rows, columns, depth, {elements, strides.row, strides.depth}, {b_rows, kStride},
          {c, kStride}, nullptr,
          transposed ? Epilogue<T>{factor.data(), largest.data()} : Epilogue<T>{});
      std::vector<T> row(columns), exact(before.begin(), before.begin() + columns);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          row[j] = expected[i * kMostColumns + j] * (transposed ? factor[i] : T(1));
          if (transposed) exact[j] = std::max(exact[j], row[j]);
        }
        ASSERT_EQ(std::memcmp(c + i * kStride, row.data(), columns * sizeof(T)), 0)
            << "row " << i << " of " << rows << " x " << columns << " x " << depth
            << ", A transposed " << transposed;
      }
      ASSERT_EQ(largest, exact) << rows << " x " << columns << " x " << depth;
      ASSERT_TRUE(c_.untouched_except(written)) << rows << " x " << columns << " x " << depth;
    }
  }

  template <bool kAccumulate>
  void expect_all_shapes() {
    for (const int64_t depth : {int64_t{0}, int64_t{1}, int64_t{2}, kSteps - 1, kSteps, kSteps + 1,
                                kSteps + 33, kMostDepth}) {
      const std::vector<E> a = random_elements(kMostRows * depth);
      const std::vector<E> b = random_elements(depth * kMostColumns);
      const std::vector<T> before = random(kMostRows * kMostColumns);
      std::vector<T> expected(before.size());
      if (kAccumulate) expected = before;
      add_chains(depth, a, b, expected);
      for (int64_t rows = 1; rows <= kMostRows; ++rows)
        for (int64_t columns = Vec<T>::kSize; columns <= kMostColumns; columns += Vec<T>::kSize) {
          expect_product<kAccumulate>(rows, columns, depth, a, b, before, expected);
          if (this->HasFatalFailure()) return;
        }
    }
  }

  test::Random random_{5};
  test::FencedMemory a_{2 * (kMostRows + 1) * (kMostDepth + 1) * sizeof(T)};
  test::FencedMemory b_{kMostDepth * kStride * sizeof(T)};
  test::FencedMemory c_{kMostRows * kStride * sizeof(T)};
};
TYPED_TEST_SUITE(TileProductTest, AllElements);

TYPED_TEST(TileProductTest, EveryShape) { this->template expect_all_shapes<false>(); }
TYPED_TEST(TileProductTest, EveryShapeAccumulating) { this->template expect_all_shapes<true>(); }

TYPED_TEST(TileProductTest, NothingToDo) {
  using T = SumOf<TypeParam>;
  T c = 7;
  tile_product<TypeParam, false>(0, Vec<T>::kSize, 3, {nullptr, 1, 1}, {nullptr, 0}, {&c, 0});
  tile_product<TypeParam, false>(3, 0, 3, {nullptr, 1, 1}, {nullptr, 0}, {&c, 0});
  EXPECT_EQ(c, T(7));
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
