// What unit_tests compares with the reference: every level that this machine's processor can run.
#include <gtest/gtest.h>

#include <string_view>

#include "compare.h"

namespace torch_ext::test {

std::vector<cpu::Implementation> fast_implementations() {
  int count;
  const cpu::Implementation* all = cpu::implementations(&count);
  std::vector<cpu::Implementation> supported;
  for (int i = 0; i < count - 1; ++i)  // the last is the reference
    if (all[i].is_supported()) supported.push_back(all[i]);
  return supported;
}

bool rounds_weights(const cpu::Implementation& level, DType dtype) {
  return dtype == DType::BFloat16 && level.name == std::string_view("avx512_bf16");
}

Sampling sampling() { return {0, 0, 1}; }

TEST(LevelsTest, ThereIsOne) {
#ifdef __x86_64__
  if (!__builtin_cpu_supports("avx2"))
    GTEST_SKIP() << "this processor has no AVX2: the reference is all there is";
  EXPECT_FALSE(fast_implementations().empty());
#endif
}

}  // namespace torch_ext::test
