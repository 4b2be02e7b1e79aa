// Few queries, which have kernels of their own in forward and backward, against the reference:
// numbers of queries and rows around those of a block, lengths around those of a tile (256 keys)
// and of a chunk, all options.
#include <gtest/gtest.h>

#include <cmath>

#include "compare.h"

namespace torch_ext::test {
namespace {

constexpr DType kDTypes[] = {DType::Float64, DType::Float32, DType::BFloat16, DType::Float16};

// Scores of large heads stay as small as those of others: what is left of s' where 16-bit output is
// subtracted grows with s'.
Options scaled_for(int64_t head_size, Options o = {}) {
  o.scale = 1 / std::sqrt(static_cast<double>(head_size));
  return o;
}

void expect_scaled_agreement_of(const Shape& shape, const Options& options) {
  expect_agreement_of(shape, scaled_for(shape.d, options));
}

Options everything(DType dtype) {
  Options o;
  o.dtype = dtype;
  o.mask = "BM";
  o.left = 170;
  o.right = 17;
  o.bottom_right = true;
  o.softcap = 1.5;
  o.slopes = o.sink = "H";
  o.dropout_p = 0.3;
  return o;
}

// With 33 heads more than a chain of multiply-adds is long.
TEST(FewQueriesTest, EveryNumberOfRows) {
  for (const DType dtype : kDTypes)
    for (int64_t n = 1; n <= 11; ++n)
      for (const int64_t group : {1, 3, 7, 33}) {
        Options o;
        o.dtype = dtype;
        expect_scaled_agreement_of({1, 2 * group, 2, n, 37, 24, 17}, o);
      }
}

// Where the gradients of keys are the sum over rows of what is not finite times a weight of 0.
TEST(FewQueriesTest, InfinityAndNanInRowsThatSeeNothingReachNothing) {
  for (const DType dtype : kDTypes)
    for (const double poison : {kInf, kNan}) {
      Options options = scaled_for(20, {});
      options.dtype = dtype;
      options.mask = "NM";
      Case c({1, 2, 1, 3, 150, 20, 20}, options);
      for (int64_t j = 0; j < 150; ++j) c.mask.set(0, 0, 1, j, 0);
      for (int64_t h = 0; h < 2; ++h) {
        c.query.set(0, h, 1, 3, poison);
        c.grad_output.set(0, h, 1, 4, poison);
      }
      for (const cpu::Implementation& level : fast_implementations()) {
        c.run(level.forward);
        const auto gradients = c.run(level.backward);
        for (size_t i = 0; i < 3; ++i)
          gradients[i].for_each([&](auto... at) {
            EXPECT_TRUE(std::isfinite(gradients[i].get(at...))) << level.name << " " << i;
          });
      }
    }
}

TEST(FewQueriesTest, EveryHeadSize) {
  for (const DType dtype : kDTypes)
    for (int64_t size = 1; size <= 34; ++size) {
      Options o;
      o.dtype = dtype;
      expect_scaled_agreement_of({1, 2, 1, 2, 19, size, 35 - size}, o);
    }
  for (const int64_t size : {127, 128, 129, 300}) {
    expect_scaled_agreement_of({1, 1, 1, 1, 9, size, 3}, {});
    expect_scaled_agreement_of({1, 1, 1, 3, 9, 3, size}, {});
  }
}

TEST(FewQueriesTest, LengthsAroundBlocksAndTiles) {
  for (const DType dtype : kDTypes)
    for (const int64_t m : {1, 2, 7, 8, 9, 15, 16, 17, 127, 128, 129, 255, 256, 257}) {
      Options o;
      o.dtype = dtype;
      o.is_causal = m % 2 == 1;
      o.bottom_right = true;
      expect_scaled_agreement_of({1, 3, 1, 2, m, 5, 6}, o);
    }
}

// D + E = 600: chunks have 256 keys, so the longest of these makes more than 64 of them, and they
// grow to 512.
TEST(FewQueriesTest, ChunksOfKeys) {
  for (const DType dtype : kDTypes)
    for (const int64_t m : {256, 257, 512, 800}) {
      Options o;
      o.dtype = dtype;
      expect_scaled_agreement_of({2, 2, 1, 1, m, 300, 300}, o);
    }
  expect_scaled_agreement_of({1, 1, 1, 1, 16500, 8, 592}, {});
}

TEST(FewQueriesTest, OptionsAcrossChunks) {
  int count = 0;
  for (const DType dtype : kDTypes)
    for (const char* bias : {"", "HNM", "M", "N"}) {
      Options o = everything(dtype);
      o.bias = bias;
      o.layout = static_cast<Layout>((count / 4 + count) % 4);  // every dtype in every layout
      o.wide = count++ % 3 == 0;
      expect_scaled_agreement_of({2, 4, 2, 2, 300, 330, 280}, o);
    }
}

TEST(FewQueriesTest, RowsAndChunksThatSeeNothing) {
  for (const char* sink : {"", "H"}) {
    Options o;
    o.mask = "NM";
    o.sink = sink;
    Case c({1, 2, 2, 3, 600, 300, 300}, scaled_for(300, o));
    for (int64_t j = 0; j < 600; ++j) {
      c.mask.set(0, 0, 0, j, 0);                                           // a row
      if (j >= 256 && j < 512) c.mask.set(0, 0, 1, j, 0);                  // a chunk of a row
      if (j >= 512) c.mask.set(0, 0, 1, j, 0), c.mask.set(0, 0, 2, j, 0);  // a chunk
    }
    expect_agreement(c);
  }
}

TEST(FewQueriesTest, HiddenInfinityAndNanReachNothing) {
  for (const double poison : {kInf, -kInf, kNan})
    for (const DType dtype : {DType::Float32, DType::Float16}) {
      Options o;
      o.dtype = dtype;
      o.mask = "M";
      Case c({1, 4, 2, 2, 300, 300, 300}, scaled_for(300, o));
      for (int64_t j = 0; j < 300; ++j) c.mask.set(0, 0, 0, j, j % 7 != 3);
      for (int64_t j = 3; j < 300; j += 7)
        for (const int64_t column : {0, 299})
          for (Tensor* t : {&c.key, &c.value}) t->set(0, 1, j, column, poison);
      expect_agreement(c);
      for (const cpu::Implementation& level : fast_implementations())
        for (const auto& results : {c.run(level.forward), c.run(level.backward)})
          for (const Tensor& t : results)
            if (t) t.for_each([&](auto... at) { EXPECT_TRUE(std::isfinite(t.get(at...))); });
    }
}

// What is visible propagates, also out of one of several chunks.
TEST(FewQueriesTest, VisibleInfinityAndNanReachWhatTheySay) {
  for (const double poison : {kInf, kNan})
    for (const char* mask : {"", "NM"}) {
      Options o;
      o.mask = mask;
      Case c({1, 2, 2, 2, 600, 300, 300}, scaled_for(300, o));
      if (c.mask) c.mask.set(0, 0, 0, 140, 1), c.mask.set(0, 0, 1, 140, 0);
      c.value.set(0, 0, 140, 2, poison);
      expect_agreement(c);
      c.key.set(0, 1, 140, 2, poison);
      expect_agreement(c);
    }
}

}  // namespace
}  // namespace torch_ext::test
