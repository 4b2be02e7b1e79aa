// What lies in hidden keys does not matter to the order of any sum either. Kernels of CUDA, which
// sum anew where they met an inf or NaN, agree in numbers only (edge_cases_test.cpp).
#include <gtest/gtest.h>

#include "compare.h"

namespace torch_ext::test {
namespace {

class HiddenKeysTest : public testing::TestWithParam<cpu::Implementation> {};

TEST_P(HiddenKeysTest, InfinityAndNanChangeNoBit) {
  for (const DType dtype : {DType::BFloat16, DType::Float32}) {
    Options options;
    options.dtype = dtype;
    options.mask = "NM";
    Case c({1, 1, 1, 65, 97, 40, 40}, options);
    for (const int64_t hidden : {5, 70})
      for (int64_t i = 0; i < 65; ++i) c.mask.set(0, 0, i, hidden, 0);
    const auto results = [&] {
      return std::vector{c.run(GetParam().forward), c.run(GetParam().backward),
                         c.run(GetParam().tangent), c.run(GetParam().second_order)};
    };
    const auto expected = results();
    for (Tensor* t : {&c.key, &c.value, &c.direction.key, &c.direction.value}) {
      t->set(0, 0, 5, 3, kNan);
      t->set(0, 0, 70, 39, kInf);
    }
    const auto got = results();
    for (size_t run = 0; run < got.size(); ++run)
      for (size_t i = 0; i < got[run].size(); ++i) {
        const Tensor &x = got[run][i], &y = expected[run][i];
        if (x) x.for_each([&](auto... at) { EXPECT_EQ(x.get(at...), y.get(at...)); });
      }
  }
}

// A key that the last queries see is nothing to those before it.
TEST_P(HiddenKeysTest, NorForTheQueriesBeforeThem) {
  constexpr int64_t kKey = 30;
  for (const DType dtype : {DType::BFloat16, DType::Float32}) {
    Options options;
    options.dtype = dtype;
    options.is_causal = true;
    Case c({1, 1, 1, 65, 97, 40, 40}, options);
    const auto of_queries = [&] {
      const auto forward = c.run(GetParam().forward), tangent = c.run(GetParam().tangent);
      return std::vector{forward[0],
                         forward[1],
                         tangent[0],
                         tangent[1],
                         c.run(GetParam().backward)[0],
                         c.run(GetParam().second_order)[0]};
    };
    const auto expected = of_queries();
    for (Tensor* t : {&c.key, &c.value, &c.direction.key, &c.direction.value})
      t->set(0, 0, kKey, 3, kNan);
    const auto got = of_queries();
    for (size_t n = 0; n < got.size(); ++n)
      got[n].for_each([&](int64_t b, int64_t h, int64_t i, int64_t d) {
        const double x = got[n].get(b, h, i, d);
        EXPECT_TRUE(i < kKey ? x == expected[n].get(b, h, i, d) : std::isnan(x)) << i;
      });
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, HiddenKeysTest, testing::ValuesIn(fast_implementations()),
                         [](const auto& info) { return std::string(info.param.name); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(HiddenKeysTest);

}  // namespace
}  // namespace torch_ext::test
