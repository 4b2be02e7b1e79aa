// Few keys and many queries, whose scores are products of rows, against the reference: numbers of
// keys up to those that are not few, queries around a tile of 64, head sizes around vectors, all
// options.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "compare.h"

namespace torch_ext::test {
namespace {

constexpr DType kDTypes[] = {DType::Float64, DType::Float32, DType::BFloat16, DType::Float16};

Options plain(DType dtype) {
  Options o;
  o.dtype = dtype;
  return o;
}

TEST(FewKeysTest, EveryNumberOfKeysInEveryLayout) {
  int count = 0;
  for (const DType dtype : kDTypes)
    for (int64_t m = 1; m <= 6; ++m)
      for (const int64_t n : {11, 17, 63, 64, 65, 130, 193}) {
        Options o = plain(dtype);
        o.layout = static_cast<Layout>((count / 4 + count) % 4);
        o.is_causal = count++ % 3 == 0;
        expect_agreement_of({2, 4, 2, n, m, 20, 13}, o);
      }
}

TEST(FewKeysTest, EveryHeadSize) {
  for (const DType dtype : kDTypes) {
    for (int64_t size = 1; size <= 34; ++size)
      expect_agreement_of({1, 2, 1, 21, 3, size, 35 - size}, plain(dtype));
    for (const int64_t size : {127, 128, 129, 300}) {
      Options o = plain(dtype);
      o.scale = 1 / std::sqrt(static_cast<double>(size));
      expect_agreement_of({1, 1, 1, 21, 2, size, 3}, o);
      expect_agreement_of({1, 1, 1, 21, 2, 3, size}, o);
    }
  }
}

TEST(FewKeysTest, AllOptions) {
  int count = 0;
  for (const DType dtype : kDTypes)
    for (const char* bias : {"", "HNM", "M", "N"}) {
      Options o = plain(dtype);
      o.mask = "BM";
      o.bias = bias;
      o.left = 60;
      o.right = 2;
      o.softcap = 1.5;
      o.slopes = o.sink = "H";
      o.dropout_p = 0.3;
      o.layout = static_cast<Layout>(count % 4);
      o.wide = count++ % 3 == 0;
      expect_agreement_of({2, 4, 2, 70, 4, 24, 17}, o);
    }
}

TEST(FewKeysTest, RowsThatSeeNothingAndHiddenInfinityAndNan) {
  for (const double poison : {kInf, -kInf, kNan})
    for (const DType dtype : {DType::Float32, DType::Float16}) {
      Options o = plain(dtype);
      o.mask = "NM";
      Case c({1, 4, 2, 20, 3, 24, 24}, o);
      for (int64_t i = 0; i < 20; ++i)
        for (int64_t j = 0; j < 3; ++j) c.mask.set(0, 0, i, j, i != 5 && j != 1);
      for (Tensor* t : {&c.key, &c.value}) t->set(0, 1, 1, 23, poison);
      for (Tensor* t : {&c.query, &c.grad_output}) t->set(0, 1, 5, 0, poison);
      expect_agreement(c);
      for (const cpu::Implementation& level : fast_implementations()) {
        std::vector<Tensor> results = {c.run(level.forward)[0]};
        for (const Tensor& gradient : c.run(level.backward)) results.push_back(gradient);
        for (const Tensor& t : results)
          if (t) t.for_each([&](auto... at) { EXPECT_TRUE(std::isfinite(t.get(at...))); });
      }
    }
}

// With one key o = v, and dp - delta is exactly 0 for any numbers.
TEST(FewKeysTest, OneKeyLeavesNothingToQueryAndKey) {
  for (const DType dtype : {DType::Float64, DType::Float32}) {
    Case c({1, 2, 2, 30, 1, 40, 37}, plain(dtype));
    c.grad_logsumexp = {};
    for (const cpu::Implementation& level : fast_implementations()) {
      c.run(level.forward);
      const auto gradients = c.run(level.backward);
      for (int i = 0; i < 2; ++i)
        gradients[i].for_each([&](auto... at) { EXPECT_EQ(gradients[i].get(at...), 0); });
    }
  }
}

}  // namespace
}  // namespace torch_ext::test
