// Every option in all four operators against the reference, alone and together, with sizes around
// those of the CPU's tiles (up to 64 queries, 96 keys) and chunks of tiles (384).
#include <gtest/gtest.h>

#include "compare.h"

namespace torch_ext::test {
namespace {

constexpr DType kDTypes[] = {DType::Float64, DType::Float32, DType::BFloat16, DType::Float16};

Options everything() {
  Options o;
  o.mask = "BM";
  o.bias = "HNM";
  o.left = 40;
  o.right = 17;
  o.bottom_right = true;
  o.softcap = 1.5;
  o.slopes = o.sink = "H";
  o.dropout_p = 0.3;
  return o;
}

TEST(OptionsTest, AllAtOnceInEveryDtypeAndLayout) {
  for (const DType dtype : kDTypes)
    for (const Layout layout :
         {Layout::kContiguous, Layout::kHeadsInside, Layout::kTransposed, Layout::kGaps})
      for (const bool wide : {false, true}) {
        Options o = everything();
        o.dtype = dtype;
        o.layout = layout;
        o.wide = wide;
        expect_agreement_of({2, 4, 2, 67, 101, 16, 8}, o);
        o.split_batch = true;
        expect_agreement_of({2, 2, 1, 33, 50, 5, 6}, o);
      }
}

// Whether or not rows are copied by 16 bytes.
TEST(OptionsTest, RowsFarApart) {
  for (const DType dtype : {DType::Float32, DType::BFloat16})
    for (const int64_t size : {5, 8}) {
      Options o;
      o.dtype = dtype;
      o.layout = Layout::kFarApart;
      o.mask = "NM";
      o.bias = "HNM";
      Case c({1, 4, 2, 3, 4, size, size}, o);
      expect_agreement(c);
    }
}

// Everything but one option: what the others must not depend on.
TEST(OptionsTest, AllButOne) {
  for (int left_out = 0; left_out < 9; ++left_out)
    for (const bool is_causal : {false, true}) {
      Options o = everything();
      o.is_causal = is_causal;
      if (left_out == 0) o.mask = "";
      if (left_out == 1) o.bias = "";
      if (left_out == 2) o.left = kUnlimited;
      if (left_out == 3) o.right = kUnlimited;
      if (left_out == 4) o.bottom_right = false;
      if (left_out == 5) o.softcap = 0;
      if (left_out == 6) o.slopes = "";
      if (left_out == 7) o.sink = "";
      if (left_out == 8) o.dropout_p = 0;
      expect_agreement_of({1, 2, 1, 70, 110, 8, 8}, o);
    }
}

// Windows narrower than a tile, as wide, wider, and empty for some rows.
TEST(OptionsTest, Windows) {
  struct Extents {
    int64_t left, right;
  };
  const Extents windows[] = {{0, 0},   {3, 0},          {0, 5},          {20, 30},    {63, 95},
                             {96, 64}, {kUnlimited, 0}, {0, kUnlimited}, {1000, 1000}};
  const Shape shapes[] = {{1, 1, 1, 65, 65, 4, 4},
                          {1, 1, 1, 64, 290, 4, 4},
                          {1, 1, 1, 200, 97, 4, 4},
                          {1, 2, 1, 1, 193, 4, 4},
                          {1, 2, 1, 130, 1, 4, 4}};
  for (const Extents& window : windows)
    for (const Shape& shape : shapes)
      for (const bool bottom_right : {false, true}) {
        Options o;
        o.left = window.left;
        o.right = window.right;
        o.bottom_right = bottom_right;
        o.dtype = shape.n % 2 ? DType::Float32 : DType::Float64;
        expect_agreement_of(shape, o);
      }
}

// Tiles and chunks that nobody sees are skipped; those beside them are not.
TEST(OptionsTest, WindowsAcrossChunks) {
  const Shape shapes[] = {{1, 2, 1, 130, 900, 3, 2},
                          {1, 2, 1, 900, 130, 3, 2},
                          {1, 1, 1, 800, 800, 3, 2},
                          {1, 2, 2, 384, 385, 3, 2}};
  for (const Shape& shape : shapes)
    for (const bool bottom_right : {false, true})
      for (const int64_t left : {int64_t{2}, int64_t{500}, kUnlimited})
        for (const char* bias : {"", "M", "NM", "HNM"}) {
          Options o = everything();
          o.mask = "N";
          o.bias = bias;
          o.left = left;
          o.right = left == 2 ? 1 : 0;
          o.bottom_right = bottom_right;
          if (left == kUnlimited) o.dropout_p = 0;
          expect_agreement_of(shape, o);
        }
}

TEST(OptionsTest, SoftcapFromTightToLoose) {
  for (const DType dtype : kDTypes)
    for (const double softcap : {0.1, 1., 30., 1e4}) {
      Options o;
      o.dtype = dtype;
      o.softcap = softcap;
      Case c({1, 2, 1, 40, 110, 8, 8}, o);
      expect_agreement(c, 1 + 4 / softcap);  // the tanh is of scores that much larger
      o.scale = 20;                          // scores far beyond the cap
      Case large({1, 2, 1, 40, 110, 8, 8}, o);
      expect_agreement(large, 1 + std::min(softcap, 400.) + 20 / softcap);
    }
}

TEST(OptionsTest, SlopesAndSinksHoweverBroadcast) {
  const char* const broadcasts[] = {"", "-", "H", "B", "BH"};
  for (const char* slopes : broadcasts)
    for (const char* sink : broadcasts)
      for (const DType dtype : kDTypes) {
        Options o;
        o.dtype = dtype;
        o.slopes = slopes;
        o.sink = sink;
        o.is_causal = dtype == DType::Float32;
        expect_agreement_of({3, 4, 2, 20, 98, 5, 6}, o);
      }
}

TEST(OptionsTest, SinksWhereNothingElseIsSeen) {
  for (const DType dtype : kDTypes)
    for (const int64_t m : {0, 1, 100}) {
      Options o;
      o.dtype = dtype;
      o.sink = "H";
      o.mask = "N";
      o.dropout_p = 0.1;
      expect_agreement_of({2, 2, 1, 67, m, 5, 6}, o);
    }
}

TEST(OptionsTest, Dropout) {
  const Shape shapes[] = {
      {2, 3, 1, 3, 5, 4, 4}, {2, 2, 2, 65, 99, 4, 4}, {1, 1, 1, 100, 400, 4, 4}};
  for (const Shape& shape : shapes)
    for (const DType dtype : kDTypes)
      for (const double p : {1e-6, 0.1, 0.5, 0.99})
        for (const char* seed : {"B", "-"}) {
          Options o;
          o.dtype = dtype;
          o.dropout_p = p;
          o.seed = seed;
          o.is_causal = shape.n == 65;
          expect_agreement_of(shape, o);
        }
}

TEST(OptionsTest, ZeroSizes) {
  const Shape shapes[] = {{0, 2, 1, 5, 6, 3, 2}, {2, 0, 0, 5, 6, 3, 2}, {1, 2, 1, 0, 6, 3, 2},
                          {1, 2, 1, 5, 0, 3, 2}, {1, 2, 1, 5, 6, 3, 0}, {1, 2, 1, 0, 0, 3, 0},
                          {1, 2, 1, 5, 6, 0, 2}, {1, 2, 1, 5, 0, 0, 0}};
  for (const Shape& shape : shapes)
    for (const DType dtype : kDTypes)
      for (const char* bias : {"HNM", "HN", "M", "-"}) {
        Options o = everything();
        o.dtype = dtype;
        o.bias = bias;
        o.split_batch = shape.batch % 2 == 0;
        expect_agreement_of(shape, o);
      }
}

}  // namespace
}  // namespace torch_ext::test
