// All four operators against the reference: odd sizes, dtypes, layouts, masks,
// groups, and what may be absent or broadcast. Further options: options_test.cpp.
#include <gtest/gtest.h>

#include <bit>

#include "compare.h"

namespace torch_ext::test {
namespace {

constexpr DType kDTypes[] = {DType::Float64, DType::Float32, DType::BFloat16, DType::Float16};
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kHeadsInside, Layout::kTransposed,
                               Layout::kGaps};

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
      SCOPED_TRACE(level.name);
      expect_same_bits(all_results(split, level), all_results(whole, level));
    }
  }
}

void expect_same_bits_in_a_batch(const Shape& alone, DType dtype) {
  Options options;
  options.dtype = dtype;
  options.is_causal = options.bottom_right = true;
  options.softcap = 4;
  options.bias = "BHM";
  options.slopes = options.sink = "BH";
  options.dropout_p = 0.2;
  Case one(alone, options, 10);
  Shape three = alone;
  three.batch = 3;
  Case many(three, options, 11);
  const auto copy = [](const Tensor& from, Tensor& to) {
    from.for_each([&](int64_t, int64_t h, int64_t r, int64_t c) {
      to.set(1, h, r, c, from.get(0, h, r, c));
    });
  };
  for (size_t i = 0; i < one.all().size(); ++i) {
    copy(*one.all()[i], *many.all()[i]);
    copy(*one.direction.all()[i], *many.direction.all()[i]);
  }
  copy(one.seed, many.seed);
  copy(one.grad_output, many.grad_output);
  copy(one.grad_logsumexp, many.grad_logsumexp);
  for (const cpu::Implementation& level : fast_implementations()) {
    const auto a = all_results(one, level), b = all_results(many, level);
    for (size_t i = 0; i < a.size(); ++i)
      a[i].for_each([&](int64_t, int64_t h, int64_t r, int64_t c) {
        EXPECT_EQ(a[i].get(0, h, r, c), b[i].get(1, h, r, c)) << level.name << ", result " << i;
      });
  }
}

TEST(OperatorsTest, SameBitsForASampleAloneAndInABatch) {
  expect_same_bits_in_a_batch({1, 2, 1, 130, 450, 5, 7}, DType::Float32);
  expect_same_bits_in_a_batch({1, 2, 1, 30, 1100, 5, 7}, DType::BFloat16);
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
      if (!runs_next_case(shape)) continue;
      Options options;
      options.bias = "M";
      options.slopes = options.sink = "H";
      Case c(shape, options);
      std::vector<Tensor*> results{&c.output_tangent, &c.logsumexp_tangent};
      for (Tensor* gradient : c.grad.all()) results.push_back(gradient);
      remove(results, bits);
      expect_agreement(c);
    }
}

TEST(OperatorsTest, AbsentTangentsAndGradientsAreZero) {
  for (unsigned bits = 0; bits < 256; ++bits) {
    const Shape shape{1, 2, 1, 20, 30, 5, 3};
    if (!runs_next_case(shape)) continue;
    Options options;
    options.dtype = bits % 2 ? DType::Float32 : DType::BFloat16;
    options.bias = "NM";
    options.slopes = options.sink = "H";
    options.softcap = 2;
    options.dropout_p = bits % 3 ? 0 : 0.3;
    Case c(shape, options);
    std::vector<Tensor*> given{&c.grad_output, &c.grad_logsumexp};
    for (Tensor* tangent : c.direction.all()) given.push_back(tangent);
    remove(given, bits);
    expect_agreement(c);
  }
}

// As under vmap, where an input has no batch dimension and its tangent has one, or the reverse.
TEST(OperatorsTest, InputsAndTangentsBroadcastOnTheirOwn) {
  for (unsigned bits = 0; bits < 64; ++bits) {
    const Shape shape{3, 2, 2, 20, 30, 5, 3};
    if (!runs_next_case(shape)) continue;
    Options options;
    options.layout = static_cast<Layout>(bits % 4);
    Case c(shape, options);
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
