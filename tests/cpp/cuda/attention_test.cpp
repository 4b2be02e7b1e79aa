// The attention kernels against the reference where it is their own cut into tiles, chunks, slices
// and splits that matters. What every implementation must do: operators_test.cpp and those beside
// it, which run in this program too.
#include <gtest/gtest.h>

#include "attention_cases.h"
#include "cuda/primitives/fibers.h"

namespace torch_ext::test {
namespace {

// Tiles have 64 or 128 own rows and 16, 32 or 64 others; splits of keys are for up to 64 queries.
TEST(AttentionTest, LengthsAroundTiles) {
  constexpr Shape kShapes[] = {{1, 1, 1, 64, 64, 8, 8},   {1, 1, 1, 65, 63, 8, 8},
                               {1, 2, 1, 128, 129, 8, 8}, {1, 1, 1, 129, 128, 8, 8},
                               {1, 1, 1, 193, 65, 8, 8},  {1, 1, 1, 31, 257, 8, 8}};
  int count = 0;
  for (const Shape& shape : kShapes)
    for (const DType dtype : kDTypes) {
      Options o = of_dtype(dtype);
      o.is_causal = count++ % 2 == 1;
      o.bottom_right = count % 3 == 0;
      o.mask = count % 5 == 0 ? "NM" : "";
      expect_all_agree(shape, o);
    }
}

// Around what a unit, a matrix instruction, a chunk and a slice hold of each dtype.
TEST(AttentionTest, HeadSizes) {
  constexpr int64_t kSizes[] = {1,  2,  4,  7,  8,  9,  15,  16,  17,  24,  31,  32, 33,
                                48, 63, 64, 65, 80, 96, 127, 128, 129, 192, 257, 300};
  constexpr int kCount = std::size(kSizes);
  for (int i = 0; i < kCount; ++i)
    for (const DType dtype : kDTypes) {
      const int64_t d = kSizes[i], e = kSizes[kCount - 1 - i];
      Options o = of_head_size(d, of_dtype(dtype));
      o.layout = i % 3 == 0 ? Layout::kTransposed : Layout::kContiguous;
      expect_all_agree({1, 1, 1, 5, 9, d, e}, o);
    }
}

// Windows that hide one entry of a tile of 32, 64 or 128, or none.
TEST(AttentionTest, WindowsThatEndWhereTilesDo) {
  for (const DType dtype : kDTypes)
    for (const int64_t extent : {30, 31, 62, 63, 126, 127})
      for (const bool is_left : {false, true}) {
        Options o = of_dtype(dtype);
        (is_left ? o.left : o.right) = extent;
        expect_all_agree({1, 1, 1, 128, 128, 2, 2}, o);
      }
}

// Behind the columns of a head of keys lie those of the next one.
TEST(AttentionTest, NanInTheNextHeadReachesNothing) {
  for (const DType dtype : kDTypes) {
    const int64_t size = dtype == DType::Float64 ? 17 : dtype == DType::Float32 ? 18 : 20;
    Options o = of_head_size(size, of_dtype(dtype));
    o.layout = Layout::kHeadsInside;
    Case c({1, 4, 2, 9, 11, size, size}, o);
    for (Tensor* t : {&c.key, &c.value})
      t->for_each([&](int64_t b, int64_t h, int64_t r, int64_t column) {
        if (h == 1) t->set(b, h, r, column, kNan);
      });
    expect_agreement(c);
  }
}

// Rows that begin on 16 bytes are copied another way than others, head by head of the group too.
TEST(AttentionTest, AlignedAndUnalignedRows) {
  for (const DType dtype : kDTypes)
    for (const int64_t size : {16, 20, 21, 72})
      for (const Layout layout : {Layout::kContiguous, Layout::kHeadsInside}) {
        Options o = of_head_size(size, of_dtype(dtype));
        o.layout = layout;
        o.is_causal = true;
        expect_all_agree({2, 4, 2, 37, 43, size, size}, o);
      }
}

// Own matrices that shared memory does not hold stream beside the others: the same numbers in the
// same order.
TEST(AttentionTest, SameBitsWithLittleSharedMemory) {
  for (const DType dtype : kDTypes)
    for (const bool has_options : {false, true}) {
      Options o = of_head_size(150, of_dtype(dtype));
      o.is_causal = true;
      if (has_options) {
        o.mask = "NM";
        o.bias = "HNM";
        o.softcap = 2;
        o.slopes = o.sink = "H";
        o.dropout_p = 0.2;
      }
      Case c({1, 1, 1, 70, 90, 150, 140}, o);
      const cpu::Implementation cuda = fast_implementations()[0];
      cuda::host::Device device = cuda::host::device();
      device.shared_memory_limit = 1 << 30;
      std::vector<Tensor> want;
      {
        const cuda::host::WithDevice with(device);
        want = all_results(c, cuda);
      }
      device.shared_memory_limit = 99 * 1024;  // what sm_86 and sm_89 have
      const cuda::host::WithDevice with(device);
      expect_same_bits(all_results(c, cuda), want);
      expect_agreement(c);
    }
}

// Scores of -inf that are visible: rows where some are, rows where all are, in tiles that are full
// too.
TEST(AttentionTest, VisibleScoresOfMinusInfinity) {
  constexpr Shape kShapes[] = {
      {1, 1, 1, 5, 40, 1, 3}, {1, 1, 1, 5, 600, 1, 3}, {1, 1, 1, 64, 64, 1, 3}};
  for (const DType dtype : kDTypes)
    for (const Shape& shape : kShapes) {
      Case c(shape, of_dtype(dtype));
      c.query.fill([] { return 1; });
      c.key.set(0, 0, 3, 0, -kInf);
      expect_agreement(c);
      c.key.fill([] { return -kInf; });
      expect_agreement(c);
    }
}

// In every dtype, on either side of a chunk, where tiles are full and where they are not.
TEST(AttentionTest, HiddenInfinityAndNanInEveryDType) {
  for (const DType dtype : kDTypes)
    for (const double poison : {kInf, kNan})
      for (const bool is_causal : {false, true}) {
        Options o = of_head_size(72, of_dtype(dtype));
        o.is_causal = is_causal;
        o.mask = is_causal ? "" : "M";
        Case c({1, 2, 1, 70, 150, 72, 72}, o);
        for (int64_t j = is_causal ? 70 : 0; j < 150; j += 5) {
          if (c.mask) c.mask.set(0, 0, 0, j, 0);
          for (const int64_t column : {0, 63, 64, 71})
            for (Tensor* t : {&c.key, &c.value, &c.direction.key, &c.direction.value})
              t->set(0, 0, j, column, poison);
        }
        expect_agreement(c);
      }
}

// Tasks are attempted twice, but their sums are those of one attempt; a bias alone hides too.
TEST(AttentionTest, HiddenInfinityAndNanBesideEverySum) {
  for (const DType dtype : kDTypes)
    for (const double poison : {kInf, kNan}) {
      Options o = of_dtype(dtype);
      o.bias = "M";
      o.slopes = o.sink = "H";
      Case c({1, 2, 1, 70, 70, 8, 8}, o);
      for (int64_t j = 0; j < 70; j += 5) {
        c.bias.set(0, 0, 0, j, -kInf);
        for (Tensor* t : {&c.key, &c.value, &c.direction.key, &c.direction.value})
          t->set(0, 0, j, 2, poison);
      }
      expect_agreement(c);
    }
}

// The sink's weight too takes the residual of logsumexp.
TEST(AttentionTest, SinksUnderAHugeBias) {
  for (const DType dtype : {DType::Float32, DType::BFloat16}) {
    Options o = of_dtype(dtype);
    o.bias = "M";
    o.sink = "H";
    o.wide = true;
    Case c({1, 2, 1, 5, 30, 4, 5}, o);
    c.query.fill([] { return 0; });
    for (Tensor* t : {&c.bias, &c.sink}) t->fill([] { return -1e9; });
    c.direction.query.fill([] { return 0; });
    expect_agreement(c);
  }
}

// In rows of queries that see nothing, and so reach no gradient of a key.
TEST(AttentionTest, HiddenInfinityAndNanInQueries) {
  for (const DType dtype : kDTypes)
    for (const double poison : {kInf, kNan}) {
      Options o = of_dtype(dtype);
      o.mask = "N";
      Case c({1, 2, 1, 70, 150, 16, 16}, o);
      for (const int64_t i : {3, 65}) {
        c.mask.set(0, 0, i, 0, 0);
        for (Tensor* t : {&c.query, &c.grad_output, &c.direction.query}) t->set(0, 1, i, 2, poison);
      }
      expect_agreement(c);
    }
}

// The gradient of a bias, however it is shared, over several tiles on both sides and several heads.
TEST(AttentionTest, BiasGradientsOverSeveralTiles) {
  int count = 0;
  for (const char* bias : {"-", "M", "N", "H", "BNM", "HNM", "BHNM"})
    for (const bool is_narrow : {false, true}) {
      Options o = of_dtype(kDTypes[count++ % 4]);
      o.bias = bias;
      o.left = is_narrow ? 20 : kUnlimited;
      o.right = 20;
      o.wide = true;
      expect_all_agree({2, 2, 1, 140, 150, 4, 4}, o);
    }
}

class OrderTest : public testing::Test {
 protected:
  // The results of `c` with every number of blocks and order of threads are those of the first.
  static void expect_same_bits_in_any_order(Case& c) {
    using cuda::host::Order;
    const cpu::Implementation cuda = fast_implementations()[0];
    const std::vector<Tensor> want = all_results(c, cuda);
    cuda::host::Device device = cuda::host::device();
    for (const Order& order :
         {Order{Order::Backward, 0}, Order{Order::Shuffled, 1}, Order{Order::Shuffled, 2}}) {
      SCOPED_TRACE(describe(c.shape, c.options) + ", order " + std::to_string(order.kind));
      device.order = order;
      device.grid_limit = order.kind == Order::Backward ? 1 : 2;  // blocks run several tasks
      device.processors = 7;
      const cuda::host::WithDevice with(device);
      expect_same_bits(all_results(c, cuda), want);
    }
  }
};

TEST_F(OrderTest, OfThreadsAndBlocks) {
  for (const DType dtype : kDTypes) {
    Options o = of_dtype(dtype);
    o.mask = "NM";
    o.bias = "HM";
    o.softcap = 2;
    o.slopes = o.sink = "H";
    o.dropout_p = 0.1;
    o.is_causal = true;
    Case some({2, 2, 1, 70, 130, 16, 72}, o);
    expect_same_bits_in_any_order(some);
  }
}

TEST_F(OrderTest, OfThreadsAndBlocksWithoutOptions) {
  for (const DType dtype : kDTypes) {
    Case plain({1, 2, 1, 130, 90, 72, 16}, of_dtype(dtype));
    expect_same_bits_in_any_order(plain);
    Case split({1, 2, 1, 3, 1100, 8, 8}, of_dtype(dtype));
    expect_same_bits_in_any_order(split);
    Case grouped({1, 4, 2, 1, 300, 8, 8}, of_dtype(dtype));
    expect_same_bits_in_any_order(grouped);
  }
}

// Tasks that are attempted twice.
TEST_F(OrderTest, OfThreadsAndBlocksWithHiddenNan) {
  for (const DType dtype : kDTypes) {
    Options o = of_dtype(dtype);
    o.is_causal = true;
    Case c({1, 2, 1, 130, 130, 16, 16}, o);
    for (int64_t j = 100; j < 130; ++j)
      for (Tensor* t : {&c.key, &c.value}) t->set(0, 0, j, 3, kNan);
    expect_same_bits_in_any_order(c);
  }
}

}  // namespace
}  // namespace torch_ext::test
