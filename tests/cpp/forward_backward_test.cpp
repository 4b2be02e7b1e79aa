// Every ISA level against the reference: odd sizes, dtypes, layouts, masks, groups.
#include <gtest/gtest.h>

#include "compare.h"

namespace torch_ext::test {
namespace {

constexpr DType kDTypes[] = {DType::Float64, DType::Float32, DType::BFloat16, DType::Float16};
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kHeadsInside, Layout::kTransposed,
                               Layout::kGaps};

void expect_agreement_of(const Shape& shape, const Options& options) {
  Case c(shape, options);
  expect_agreement(c);
}

TEST(ForwardBackwardTest, RunsSomeLevel) {
#ifdef __x86_64__
  if (!__builtin_cpu_supports("avx2"))
    GTEST_SKIP() << "this processor has no AVX2: the reference is all there is";
  EXPECT_FALSE(fast_implementations().empty());
#endif
}

TEST(ForwardBackwardTest, OddSizesInEveryDtypeAndLayout) {
  const Shape shapes[] = {{1, 1, 1, 1, 1, 1, 1},     {2, 3, 3, 5, 7, 3, 2},
                          {1, 2, 1, 63, 95, 8, 9},   {1, 1, 1, 64, 96, 16, 16},
                          {1, 1, 1, 65, 97, 17, 33}, {1, 4, 2, 20, 130, 40, 31},
                          {1, 1, 1, 129, 40, 5, 64}, {2, 1, 1, 15, 16, 111, 1}};
  for (const Shape& shape : shapes)
    for (const DType dtype : kDTypes)
      for (const Layout layout : kLayouts)
        for (const bool is_causal : {false, true}) {
          Options options;
          options.dtype = dtype;
          options.layout = layout;
          options.is_causal = is_causal;
          expect_agreement_of(shape, options);
        }
}

TEST(ForwardBackwardTest, MasksAndBiasesHoweverBroadcast) {
  const char* const broadcasts[] = {"", "-", "M", "N", "NM", "HM", "BN", "BHNM"};
  for (const char* mask : broadcasts)
    for (const char* bias : broadcasts)
      for (const bool is_causal : {false, true}) {
        Options options;
        options.mask = mask;
        options.bias = bias;
        options.is_causal = is_causal;
        options.dtype = is_causal ? DType::Float32 : DType::Float64;
        options.layout = std::string(bias) < mask ? Layout::kGaps : Layout::kHeadsInside;
        expect_agreement_of({2, 4, 2, 70, 101, 5, 6}, options);
      }
}

TEST(ForwardBackwardTest, SixteenBitBiasesOfEitherWidth) {
  for (const DType dtype : {DType::BFloat16, DType::Float16})
    for (const bool wide_bias : {false, true})
      for (const char* bias : {"BHNM", "HNM", "M"}) {
        Options options;
        options.dtype = dtype;
        options.bias = bias;
        options.mask = "NM";
        options.wide_bias = wide_bias;
        expect_agreement_of({2, 2, 1, 33, 50, 16, 24}, options);
      }
}

TEST(ForwardBackwardTest, SeveralChunksOfKeysOrOfQueries) {
  const Shape shapes[] = {
      {1, 2, 1, 70, 900, 3, 5}, {1, 2, 2, 900, 100, 5, 3}, {2, 2, 1, 500, 500, 2, 1}};
  for (const Shape& shape : shapes)
    for (const DType dtype : {DType::Float32, DType::BFloat16})
      for (const char* bias : {"", "BHNM", "NM", "M"}) {
        Options options;
        options.dtype = dtype;
        options.bias = bias;
        options.is_causal = shape.n == shape.m;
        expect_agreement_of(shape, options);
      }
}

TEST(ForwardBackwardTest, ZeroSizes) {
  const Shape shapes[] = {{0, 2, 1, 5, 6, 3, 2}, {2, 0, 0, 5, 6, 3, 2}, {1, 2, 1, 0, 6, 3, 2},
                          {1, 2, 1, 5, 0, 3, 2}, {1, 2, 1, 5, 6, 3, 0}, {1, 2, 1, 0, 0, 3, 0}};
  for (const Shape& shape : shapes)
    for (const DType dtype : kDTypes)
      for (const char* bias : {"", "BHNM", "N"}) {
        Options options;
        options.dtype = dtype;
        options.bias = bias;
        expect_agreement_of(shape, options);
      }
}

TEST(ForwardBackwardTest, AnyFiniteScale) {
  for (const double scale : {0., -1.5, 1e-3, 40.})
    for (const bool is_causal : {false, true}) {
      Options options;
      options.dtype = DType::Float64;
      options.scale = scale;
      options.is_causal = is_causal;
      Case c({1, 2, 1, 40, 110, 8, 8}, options);
      expect_agreement(c, 1 + 20 * std::fabs(scale));
    }
}

TEST(ForwardBackwardTest, MoreLeadingDimensions) {
  for (const Layout layout : kLayouts) {
    Options options;
    options.split_batch = true;
    options.layout = layout;
    options.mask = "BM";
    options.bias = "BHN";
    Case split({4, 4, 2, 9, 20, 5, 6}, options);
    expect_agreement(split);
    // The same numbers with the batch as one dimension.
    options.split_batch = false;
    Case whole({4, 4, 2, 9, 20, 5, 6}, options);
    for (const cpu::Implementation& level : fast_implementations()) {
      EXPECT_EQ(split.run(level.forward)[0].bytes(), whole.run(level.forward)[0].bytes());
      EXPECT_EQ(split.run(level.backward)[1].bytes(), whole.run(level.backward)[1].bytes());
    }
  }
}

TEST(ForwardBackwardTest, OnlyTheGradientsAskedForAndGiven) {
  for (int given = 0; given < 32; ++given)
    for (const Shape& shape : {Shape{1, 2, 1, 40, 500, 5, 3}, Shape{1, 2, 1, 500, 40, 5, 3}}) {
      Options options;
      options.bias = "M";
      Case c(shape, options);
      if (given & 1) c.grad_query = Tensor();
      if (given & 2) c.grad_key = Tensor();
      if (given & 4) c.grad_value = Tensor();
      if (given & 8) c.grad_bias = Tensor();
      if (given & 16) c.grad_logsumexp = Tensor();
      expect_agreement(c);
    }
}

}  // namespace
}  // namespace torch_ext::test
