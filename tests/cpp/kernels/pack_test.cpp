// Tiles against plain loops: every storage type, every size around the vector width, strides of
// every kind, any alignment. Memory between and after the elements is NaN or may not be touched at
// all.
#include <gtest/gtest.h>

#include <functional>

#include "../helpers.h"
#include "cpu/kernels/tile/pairs.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class S>
constexpr DType kDType = sizeof(S) == 8 ? DType::Float64 : DType::Float32;
template <>
constexpr DType kDType<BFloat16> = DType::BFloat16;
template <>
constexpr DType kDType<Float16> = DType::Float16;
template <>
constexpr DType kDType<bool> = DType::Bool;

template <class S>
void assign(double x, S* out) {
  if constexpr (std::is_same_v<S, BFloat16>)
    out->bits = test::encode16(x, 8);
  else if constexpr (std::is_same_v<S, Float16>)
    out->bits = test::encode16(x, 5);
  else
    *out = static_cast<S>(x);
}

// What an element means to the kernels: its value; for bool, what is added to a score.
template <class S>
double value(S x) {
  if constexpr (std::is_same_v<S, BFloat16>) return test::decode_bfloat16(x.bits);
  if constexpr (std::is_same_v<S, Float16>) return test::decode_float16(x.bits);
  if constexpr (std::is_same_v<S, bool>) return x ? 0 : -test::kInf;
  if constexpr (std::is_floating_point_v<S>) return x;
}

template <class T_, class S_>
struct Conversion {
  using T = T_;
  using S = S_;
};

struct Layout {
  int64_t row, col;
};

template <class P>
class PackTest : public testing::Test {
 protected:
  using T = typename P::T;
  using S = typename P::S;
  static constexpr int64_t kLongest = 2 * Vec<T>::kSize + 1;

  static std::vector<Layout> layouts(int64_t rows, int64_t cols) {
    return {{cols, 1},
            {cols + 3, 1},
            {1, rows},
            {1, rows + 2},
            {2 * cols + 1, 2},
            {3, 3 * rows + 1},
            {0, 1},
            {1, 0},
            {0, 0},
            {0, 5},
            {5, 0}};
  }
  static std::vector<int64_t> sizes() {  // all of them, thinned out far from whole vectors
    std::vector<int64_t> sizes;
    for (int64_t n = 0; n <= kLongest; ++n)
      if (n < 10 || n % Vec<T>::kSize < 3 || n % kBlock<T> == kBlock<T> - 1) sizes.push_back(n);
    return sizes;
  }

  // The tile as an operand whose last element lies before the fence; the element before the first
  // one is NaN.
  Operand random_tile(int64_t rows, int64_t cols, Layout layout, int64_t misalignment) {
    memory_.poison();
    const int64_t last = (rows - 1) * layout.row + (cols - 1) * layout.col;
    S* data = memory_.last<S>(1 + std::max<int64_t>(0, last) + misalignment);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        const double x = random_.normal();
        assign<S>(std::is_same_v<S, bool> ? x > 0 : x, data + r * layout.row + c * layout.col);
      }
    Operand operand;
    operand.data = data;
    operand.dtype = kDType<S>;
    operand.row_stride = layout.row;
    operand.col_stride = layout.col;
    return operand;
  }
  static double at(const Operand& x, int64_t r, int64_t c) {
    return value(static_cast<const S*>(x.data)[r * x.row_stride + c * x.col_stride]);
  }

  // Checks out (height x stride): expected(y, x) where x < width, `pad` up to the stride, and
  // nothing after it. A NaN `pad` stands for memory that must not be written.
  template <class Expected>
  void expect_tile(const T* out, int64_t height, int64_t width, int64_t stride, double pad,
                   const Expected& expected) {
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < stride; ++x) {
        const double want = x < width ? expected(y, x) : pad;
        ASSERT_TRUE(test::same(out[y * stride + x], want))
            << y << ", " << x << ": " << out[y * stride + x];
      }
    for (int64_t i = 1; i <= 8; ++i) ASSERT_TRUE(std::isnan(out[-i]));
  }

  template <class Check>
  void for_all_tiles(const Check& check) {
    for (int64_t rows : sizes())
      for (int64_t cols : sizes())
        for (const Layout& layout : layouts(rows, cols))
          for (int64_t misalignment : {0, 1, 3}) {
            SCOPED_TRACE(testing::Message()
                         << rows << " x " << cols << ", strides " << layout.row << " " << layout.col
                         << ", misalignment " << misalignment);
            out_.poison();
            check(random_tile(rows, cols, layout, misalignment), rows, cols);
            if (this->HasFatalFailure()) return;
          }
  }

  test::Random random_{4};
  test::FencedMemory memory_{1 << 16};
  test::FencedMemory out_{1 << 16};
};

using Conversions = testing::Types<Conversion<float, float>, Conversion<float, BFloat16>,
                                   Conversion<float, Float16>, Conversion<float, bool>,
                                   Conversion<double, double>, Conversion<double, bool>>;
TYPED_TEST_SUITE(PackTest, Conversions);

TYPED_TEST(PackTest, CopiesTiles) {
  using T = typename TypeParam::T;
  using S = typename TypeParam::S;
  this->for_all_tiles([&](const Operand& x, int64_t rows, int64_t cols) {
    T* out = this->out_.template last<T>(rows * (cols + 1));
    copy_tile<T, S>({static_cast<const S*>(x.data), x.row_stride, x.col_stride}, rows, cols, out,
                    cols + 1);
    this->expect_tile(out, rows, cols, cols + 1, test::kNan,
                      [&](int64_t r, int64_t c) { return this->at(x, r, c); });
  });
}

TYPED_TEST(PackTest, TransposesTiles) {
  using T = typename TypeParam::T;
  using S = typename TypeParam::S;
  this->for_all_tiles([&](const Operand& x, int64_t rows, int64_t cols) {
    T* out = this->out_.template last<T>(cols * (rows + 1));
    transpose_tile<T, S>({static_cast<const S*>(x.data), x.row_stride, x.col_stride}, rows, cols,
                         out, rows + 1);
    this->expect_tile(out, cols, rows, rows + 1, test::kNan,
                      [&](int64_t c, int64_t r) { return this->at(x, r, c); });
  });
}

TYPED_TEST(PackTest, PacksRowsAndTheirTransposeWithZerosBeyond) {
  using T = typename TypeParam::T;
  if constexpr (!std::is_same_v<typename TypeParam::S, bool>)
    this->for_all_tiles([&](const Operand& x, int64_t rows, int64_t cols) {
      const int64_t stride = round_up(cols, Vec<T>::kSize), height = round_up(rows, Vec<T>::kSize);
      const int64_t skipped = rows / 2;  // packing may start at any row
      T* out = this->out_.template last<T>((rows - skipped) * stride);
      pack_rows<T>(x, 0, skipped, rows - skipped, cols, out, stride);
      this->expect_tile(out, rows - skipped, cols, stride, 0,
                        [&](int64_t r, int64_t c) { return this->at(x, skipped + r, c); });
      this->out_.poison();
      out = this->out_.template last<T>(cols * height);
      pack_transposed<T>(x, 0, skipped, rows - skipped, cols, out, height);
      this->expect_tile(out, cols, rows - skipped, height, 0,
                        [&](int64_t c, int64_t r) { return this->at(x, skipped + r, c); });
    });
}

TYPED_TEST(PackTest, ReadsRowsInPlaceOnlyWhereThatIsSafe) {
  using T = typename TypeParam::T;
  using S = typename TypeParam::S;
  if constexpr (!std::is_same_v<S, bool>)
    this->for_all_tiles([&](const Operand& x, int64_t rows, int64_t cols) {
      for (const bool whole_vectors : {false, true}) {
        this->out_.poison();
        const int64_t width = round_up(cols, Vec<T>::kSize);
        T* buffer = this->out_.template last<T>(rows * width);
        const Rows<const T> got =
            rows_in_place_or_packed<T>(x, 0, 0, rows, cols, whole_vectors, buffer);
        const bool may =
            std::is_same_v<S, T> && x.col_stride == 1 && (!whole_vectors || cols == width);
        ASSERT_EQ(got.data != buffer, may);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < (may ? cols : width); ++c)
            ASSERT_EQ(got.data[r * got.stride + c], c < cols ? this->at(x, r, c) : 0);
      }
    });
}

TYPED_TEST(PackTest, WritesRowsAndNothingBetweenThem) {
  using T = typename TypeParam::T;
  using S = typename TypeParam::S;
  if constexpr (!std::is_same_v<S, bool>)
    this->for_all_tiles([&](Operand x, int64_t rows, int64_t cols) {
      if (rows > 0 && cols > 0 && (x.row_stride == 0 || x.col_stride == 0))
        return;  // results are never broadcast
      const int64_t stride = cols + 2;
      T* tile = this->out_.template last<T>(rows * stride);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
          tile[r * stride + c] = static_cast<T>(this->random_.normal());
      this->memory_.poison();
      write_rows<T>(tile, stride, rows, cols, T(-0.75), x, 0, 0);
      std::vector<bool> written(this->memory_.size());
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) {
          S *element = static_cast<S*>(x.data) + r * x.row_stride + c * x.col_stride, expected;
          assign(tile[r * stride + c] * T(-0.75), &expected);
          ASSERT_EQ(value(*element), value(expected)) << r << ", " << c;
          const auto start = reinterpret_cast<unsigned char*>(element) - this->memory_.begin();
          std::fill_n(written.begin() + start, sizeof(S), true);
        }
      ASSERT_TRUE(this->memory_.untouched_except(written));
    });
}

#ifdef __AVX512BF16__

class PackPairsTest : public PackTest<Conversion<float, BFloat16>> {
 protected:
  // `got(r, c)`: the pair of terms r and r + 1 (r even) of column c; 0 beyond the last term and
  // from `cols` to `stride`.
  template <class Got>
  static void expect_pairs(int64_t terms, int64_t cols, int64_t stride, const Got& got,
                           const std::function<double(int64_t, int64_t)>& expected) {
    for (int64_t r = 0; r < terms; r += 2)
      for (int64_t c = 0; c < stride; ++c)
        for (int64_t part = 0; part < 2; ++part) {
          const double want = c < cols && r + part < terms ? expected(r + part, c) : 0;
          ASSERT_EQ(static_cast<double>(term_of(got(r, c), part)), want)
              << "term " << r + part << ", column " << c;
        }
  }
};

TEST_F(PackPairsTest, RightFactorsAndTransposesWithZerosBeyond) {
  for_all_tiles([&](const Operand& x, int64_t rows, int64_t cols) {
    const int64_t skipped = rows / 2, left = rows - skipped;
    const auto entry = [&](int64_t r, int64_t c) { return at(x, skipped + r, c); };
    const int64_t width = round_up(cols, 16), height = round_up(left, 16);
    Pair* out = out_.last<Pair>(elements<Pair>(left) * width);
    const Rows<const Pair> right = pack_right<Pair>(x, 0, skipped, left, cols, out);
    expect_pairs(
        left, cols, width,
        [&](int64_t r, int64_t c) { return right.data[r / 2 * right.stride + c]; }, entry);
    out_.poison();
    out = out_.last<Pair>(elements<Pair>(cols) * height);
    pack_transposed<Pair>(x, 0, skipped, left, cols, out, height);
    expect_pairs(
        cols, left, height, [&](int64_t c, int64_t r) { return out[c / 2 * height + r]; },
        [&](int64_t c, int64_t r) { return entry(r, c); });
  });
}

TEST_F(PackPairsTest, LeftFactorsInPlaceWhereTheirTermsArePairsInMemory) {
  for_all_tiles([&](const Operand& x, int64_t rows, int64_t cols) {
    Pair* buffer = out_.last<Pair>(rows * elements<Pair>(cols));
    const Broadcast<Pair> left = pack_left<Pair>(x, 0, 0, rows, cols, buffer);
    const bool aligned = reinterpret_cast<uintptr_t>(x.data) % sizeof(Pair) == 0;
    ASSERT_EQ(left.data != buffer,
              x.col_stride == 1 && x.row_stride % 2 == 0 && cols % 2 == 0 && aligned);
    expect_pairs(
        cols, rows, rows,
        [&](int64_t c, int64_t r) { return left.data[r * left.row + c / 2 * left.depth]; },
        [&](int64_t c, int64_t r) { return at(x, r, c); });
  });
}

#endif

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
