// What lies in hidden keys does not matter to the order of any sum either. Kernels of CUDA, which
// sum anew where they met an inf or NaN, agree in numbers only (edge_cases_test.cpp).
#include <gtest/gtest.h>

#include "compare.h"

namespace torch_ext::test {
namespace {

class HiddenKeysTest : public testing::TestWithParam<cpu::Implementation> {
 protected:
  // Of 65 queries and 97 keys, of which two are hidden.
  static void expect_the_same_bits(Case c, int64_t first, int64_t second,
                                   const cpu::Implementation& kernels) {
    const auto results = [&] {
      return std::vector{c.run(kernels.forward), c.run(kernels.backward), c.run(kernels.tangent),
                         c.run(kernels.second_order)};
    };
    const auto expected = results();
    for (Tensor* t : {&c.key, &c.value, &c.direction.key, &c.direction.value}) {
      t->set(0, 0, first, 3, kNan);
      t->set(0, 0, second, 39, kInf);
    }
    const auto got = results();
    for (size_t run = 0; run < got.size(); ++run)
      for (size_t i = 0; i < got[run].size(); ++i) {
        const Tensor &x = got[run][i], &y = expected[run][i];
        if (x) x.for_each([&](auto... at) { EXPECT_EQ(x.get(at...), y.get(at...)); });
      }
  }
};

TEST_P(HiddenKeysTest, InfinityAndNanChangeNoBit) {
  for (const DType dtype : {DType::BFloat16, DType::Float32})
    for (const bool is_causal : {false, true}) {
      Options options;
      options.dtype = dtype;
      options.is_causal = is_causal;
      options.mask = is_causal ? "" : "NM";
      Case c({1, 1, 1, 65, 97, 40, 40}, options);
      // At the edge of what the last queries see, and behind it.
      const int64_t first = is_causal ? 66 : 5, second = is_causal ? 90 : 70;
      for (int64_t i = 0; i < 65 && !is_causal; ++i)
        for (const int64_t hidden : {first, second}) c.mask.set(0, 0, i, hidden, 0);
      expect_the_same_bits(c, first, second, GetParam());
    }
}

INSTANTIATE_TEST_SUITE_P(Levels, HiddenKeysTest, testing::ValuesIn(fast_implementations()),
                         [](const auto& info) { return std::string(info.param.name); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(HiddenKeysTest);

}  // namespace
}  // namespace torch_ext::test
