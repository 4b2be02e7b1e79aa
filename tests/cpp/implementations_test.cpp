// The table of implementations and the choice that TORCH_EXT_ISA makes, each in a process of its
// own: the choice is made once.
#include "cpu/implementations.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace torch_ext::cpu {
namespace {

std::vector<Implementation> table() {
  int count;
  const Implementation* all = implementations(&count);
  return {all, all + count};
}

// Prints the chosen implementation, or the error, and leaves.
[[noreturn]] void print_choice() {
  try {
    std::fprintf(stderr, "chosen: %s\n", implementation().name);
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  std::exit(0);
}

class ImplementationsDeathTest : public testing::Test {
 protected:
  ImplementationsDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  ~ImplementationsDeathTest() override { unsetenv("TORCH_EXT_ISA"); }
};

TEST(ImplementationsTest, BestFirstAndReferenceLast) {
  std::vector<std::string> names;
  for (const Implementation& implementation : table()) names.emplace_back(implementation.name);
#ifdef __x86_64__
  EXPECT_EQ(names, (std::vector<std::string>{"avx512_bf16", "avx512", "avx2", "reference"}));
  EXPECT_EQ(table()[0].is_supported(), has_avx512_bf16());
  EXPECT_EQ(table()[1].is_supported(), has_avx512());
  EXPECT_EQ(table()[2].is_supported(), has_avx2());
  EXPECT_TRUE(has_avx512() || !has_avx512_bf16());
  EXPECT_TRUE(has_avx2() || !has_avx512());
#else
  EXPECT_EQ(names, (std::vector<std::string>{"reference"}));
#endif
  EXPECT_TRUE(table().back().is_supported());
}

TEST_F(ImplementationsDeathTest, TheBestSupportedOneWithoutTheVariable) {
  std::string best;
  for (const Implementation& implementation : table())
    if (best.empty() && implementation.is_supported()) best = implementation.name;
  unsetenv("TORCH_EXT_ISA");
  EXPECT_EXIT(print_choice(), testing::ExitedWithCode(0), "chosen: " + best);
  setenv("TORCH_EXT_ISA", "", 1);
  EXPECT_EXIT(print_choice(), testing::ExitedWithCode(0), "chosen: " + best);
}

TEST_F(ImplementationsDeathTest, TheVariableNamesOne) {
  for (const Implementation& implementation : table()) {
    setenv("TORCH_EXT_ISA", implementation.name, 1);
    const std::string expected = implementation.is_supported() ? "chosen: " : "but got '";
    EXPECT_EXIT(print_choice(), testing::ExitedWithCode(0), expected + implementation.name);
  }
}

TEST_F(ImplementationsDeathTest, AnUnknownNameIsAnErrorThatListsTheKnownOnes) {
  for (const char* name : {"avx1024", "AVX2", "avx"}) {
    setenv("TORCH_EXT_ISA", name, 1);
    EXPECT_EXIT(
        print_choice(), testing::ExitedWithCode(0),
        std::string(
            "error: .*TORCH_EXT_ISA to be one of .*reference on this processor, but got '") +
            name + "'");
  }
}

}  // namespace
}  // namespace torch_ext::cpu
