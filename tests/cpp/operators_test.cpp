// All four operators of every ISA level against the reference: odd sizes, dtypes, layouts, masks,
// groups, and what may be absent or broadcast. Further options: options_test.cpp.
#include <gtest/gtest.h>

#include <bit>

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

TEST(OperatorsTest, RunsSomeLevel) {
#ifdef __x86_64__
  if (!__builtin_cpu_supports("avx2"))
    GTEST_SKIP() << "this processor has no AVX2: the reference is all there is";
  EXPECT_FALSE(fast_implementations().empty());
#endif
}

TEST(OperatorsTest, OddSizesInEveryDtypeAndLayout) {
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

// The last tile of a head is as wide as its queries; a tile of keys may be seen in part at first,
// and wholly by later queries, or by none.
TEST(OperatorsTest, LastTilesOfFewQueriesAndTilesOfKeysSeenInPart) {
  for (const DType dtype : kDTypes)
    for (const int64_t n : {20, 84, 97, 150})
      for (const int64_t m : {1, 2, 7, 100, 200})
        for (const int64_t d : {8, 72}) {
          Options options;
          options.dtype = dtype;
          options.layout = Layout::kHeadsInside;
          options.is_causal = true;
          expect_agreement_of({1, 2, 1, n, m, d, d + 1}, options);
        }
}

TEST(OperatorsTest, MasksAndBiasesHoweverBroadcast) {
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
        expect_agreement_of({2, 2, 1, 70, 101, 5, 6}, options);
      }
}

TEST(OperatorsTest, SixteenBitBiasesOfEitherWidth) {
  for (const DType dtype : {DType::BFloat16, DType::Float16})
    for (const bool wide : {false, true})
      for (const char* bias : {"BHNM", "HNM", "M"}) {
        Options options;
        options.dtype = dtype;
        options.bias = bias;
        options.mask = "NM";
        options.wide = wide;
        expect_agreement_of({2, 2, 1, 33, 50, 16, 24}, options);
      }
}

TEST(OperatorsTest, SeveralChunksOfKeysOrOfQueries) {
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

TEST(OperatorsTest, ZeroSizes) {
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

TEST(OperatorsTest, AnyFiniteScale) {
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

TEST(OperatorsTest, MoreLeadingDimensions) {
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
      const auto expect_same = [&](auto op) {
        const auto got = split.run(op), want = whole.run(op);
        for (size_t i = 0; i < want.size(); ++i) {
          if (want[i]) {
            EXPECT_EQ(got[i].bytes(), want[i].bytes()) << level.name << ", result " << i;
          }
        }
      };
      expect_same(level.forward);
      expect_same(level.backward);
      expect_same(level.tangent);
      expect_same(level.second_order);
    }
  }
}

constexpr Shape kManyKeysOrQueries[] = {{1, 2, 1, 40, 500, 5, 3}, {1, 2, 1, 500, 40, 5, 3}};

// Takes away the tensors whose bit is set.
void remove(const std::vector<Tensor*>& tensors, unsigned bits) {
  for (size_t i = 0; i < tensors.size(); ++i)
    if (bits >> i & 1) *tensors[i] = Tensor();
}

TEST(OperatorsTest, OnlyTheResultsAskedFor) {
  for (const Shape& shape : kManyKeysOrQueries)
    for (unsigned bits = 0; bits < 256; ++bits) {
      // Each alone, each missing, and some of the rest.
      const int missing = std::popcount(bits);
      if (missing != 1 && missing != 7 && bits % 11 != 0) continue;
      Options options;
      options.bias = "M";
      options.slopes = options.sink = "H";
      Case c(shape, options);
      std::vector<Tensor*> results(c.grad.all().begin(), c.grad.all().end());
      results.insert(results.end(), {&c.output_tangent, &c.logsumexp_tangent});
      remove(results, bits);
      expect_agreement(c);
    }
}

TEST(OperatorsTest, AbsentTangentsAndGradientsAreZero) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    Options options;
    options.dtype = bits % 2 ? DType::Float32 : DType::BFloat16;
    options.bias = "NM";
    options.slopes = options.sink = "H";
    options.softcap = 2;
    options.dropout_p = bits % 3 ? 0 : 0.3;
    Case c({1, 2, 1, 20, 30, 5, 3}, options);
    std::vector<Tensor*> given(c.direction.all().begin(), c.direction.all().end());
    given.insert(given.end(), {&c.grad_output, &c.grad_logsumexp});
    remove(given, bits);
    expect_agreement(c);
  }
}

// As under vmap, where an input has no batch dimension and its tangent has one, or the reverse.
TEST(OperatorsTest, InputsAndTangentsBroadcastOnTheirOwn) {
  for (unsigned bits = 0; bits < 64; ++bits) {
    Options options;
    options.layout = static_cast<Layout>(bits % 4);
    Case c({3, 2, 2, 20, 30, 5, 3}, options);
    Inputs& tangents = c.direction;
    Tensor* const tensors[] = {&c.query,        &c.key,        &c.value,
                               &tangents.query, &tangents.key, &tangents.value};
    Random random(bits);
    for (int i = 0; i < 6; ++i) {
      if (bits >> i & 1) continue;
      Tensor& t = *tensors[i];
      std::vector<int64_t> sizes = t.sizes();
      sizes[0] = 1;
      t = Tensor(t.dtype(), sizes, options.layout).fill([&] { return random.normal(); });
    }
    expect_agreement(c);
  }
}

}  // namespace
}  // namespace torch_ext::test
