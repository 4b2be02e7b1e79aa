// Few queries: their keys are split, and heads that read the same keys share a task.
#include <gtest/gtest.h>

#include "attention_cases.h"

namespace torch_ext::test {
namespace {

// However many keys, no more than 64 splits.
TEST(DecodeTest, WorkspaceOfAForwardIsLimited) {
  ForwardProblem p;
  p.leading_dims = 1;
  p.leading_sizes[0] = 2;
  p.query_length = 3;
  p.key_length = int64_t{1} << 40;
  p.head_size = p.value_head_size = 5;
  p.query.dtype = DType::BFloat16;
  EXPECT_EQ(cuda::forward_workspace(p), 64 * 2 * 3 * (5 + 2) * 4);
  p.query_length = 65;
  EXPECT_EQ(cuda::forward_workspace(p), 0);
}

// Where there are at most 64 queries, keys are split into parts of at least 256.
TEST(DecodeTest, SplitsOfKeys) {
  for (const DType dtype : kDTypes)
    for (const int64_t m : {513, 1100}) {
      Options o = of_dtype(dtype);
      o.sink = m == 1100 ? "H" : "";
      o.is_causal = o.bottom_right = m % 2 == 1;
      expect_all_agree({1, 2, 1, m == 513 ? 64 : 3, m, 5, 6}, o);
    }
}

TEST(DecodeTest, SplitsInEveryLayoutWithEveryOption) {
  int count = 0;
  for (const DType dtype : kDTypes)
    for (const int64_t left : {kUnlimited, int64_t{600}, int64_t{40}}) {
      Options o = of_dtype(dtype);
      o.layout = static_cast<Layout>(count % 4);
      o.mask = count % 2 == 0 ? "BM" : "NM";
      o.bias = count % 3 == 0 ? "HNM" : "M";
      o.left = left;
      o.right = 3;
      o.bottom_right = true;
      o.softcap = 1.5;
      o.slopes = o.sink = "H";
      o.dropout_p = 0.3;
      ++count;
      expect_all_agree({2, 2, 1, 20, 1100, 8, count % 4 == 0 ? 140 : 8}, o);
    }
}

TEST(DecodeTest, SplitsThatSomeOrAllRowsDoNotSee) {
  for (const DType dtype : kDTypes)
    for (const char* sink : {"", "H"}) {
      Options o = of_dtype(dtype);
      o.sink = sink;
      o.mask = "NM";
      Case c({1, 2, 1, 4, 1700, 5, 6}, o);
      for (int64_t j = 0; j < 1700; ++j) {
        c.mask.set(0, 0, 0, j, 0);                // row 0 sees nothing
        if (j < 512) c.mask.set(0, 0, 1, j, 0);   // row 1 not the first split
        if (j >= 600) c.mask.set(0, 0, 2, j, 0);  // row 2 not the last ones
        if (j >= 512 && j < 1024) c.mask.set(0, 0, 1, j, 0), c.mask.set(0, 0, 2, j, 0);
        if (j >= 512 && j < 1024) c.mask.set(0, 0, 3, j, 0);  // nobody the second
      }
      expect_agreement(c);
    }
}

// More keys than 64 splits of 256 hold.
TEST(DecodeTest, LargerSplitsOfManyKeys) {
  expect_all_agree({1, 1, 1, 1, 33000, 1, 1}, of_dtype(DType::BFloat16));
}

// The largest score is in the first split, in the last one, or infinite.
TEST(DecodeTest, SplitsOfVeryDifferentScores) {
  for (const DType dtype : {DType::Float32, DType::BFloat16})
    for (const double slope : {0.06, -0.06}) {
      Options o = of_dtype(dtype);
      o.bias = "M";
      o.wide = true;
      Case c({1, 1, 1, 3, 1100, 4, 5}, o);
      for (int64_t j = 0; j < 1100; ++j) c.bias.set(0, 0, 0, j, slope * static_cast<double>(j));
      expect_agreement(c, 70);
    }
}

TEST(DecodeTest, VisibleInfinityAndNanInSplits) {
  for (const double poison : {kInf, -kInf, kNan})
    for (const DType dtype : kDTypes) {
      Options o = of_dtype(dtype);
      o.mask = "NM";
      Case c({1, 1, 1, 2, 1100, 5, 16}, o);
      c.mask.set(0, 0, 0, 700, 1);
      c.mask.set(0, 0, 1, 700, 0);
      c.value.set(0, 0, 700, 2, poison);
      expect_agreement(c);
      c.key.set(0, 0, 700, 2, poison);
      expect_agreement(c);
    }
}

// One tile of rows and more, rows of one head and of several in a lane, heads that are alone.
constexpr Shape kGrouped[] = {{2, 8, 2, 1, 70, 16, 8},  {1, 40, 1, 2, 90, 8, 8},
                              {1, 6, 2, 3, 600, 8, 20}, {1, 4, 2, 32, 40, 5, 6},
                              {1, 4, 2, 33, 40, 5, 6},  {2, 3, 3, 1, 40, 5, 6}};

TEST(DecodeTest, GroupedHeadsInEveryLayout) {
  int count = 0;
  for (const Layout layout :
       {Layout::kContiguous, Layout::kHeadsInside, Layout::kTransposed, Layout::kGaps})
    for (const bool has_window : {false, true}) {
      for (const Shape& shape : kGrouped) {
        Options o = of_dtype(kDTypes[count++ % 4]);
        o.layout = layout;
        o.is_causal = o.bottom_right = has_window;
        o.left = has_window ? 20 : kUnlimited;
        expect_all_agree(shape, o);
      }
      ++count;
    }
}

TEST(DecodeTest, GroupedHeadsWithEveryOptionOfTheirOwn) {
  for (const Shape& shape : kGrouped)
    for (const DType dtype : kDTypes) {
      Options o = of_dtype(dtype);
      o.mask = shape.n == 1 ? "BHM" : "BHNM";
      o.bias = "HNM";
      o.softcap = 2;
      o.slopes = o.sink = "BH";
      o.dropout_p = 0.3;
      o.is_causal = o.bottom_right = true;
      expect_all_agree(shape, o);
    }
}

// Where heads lie in memory decides whether they share a task, and no number depends on it.
TEST(DecodeTest, SameNumbersWhetherOrNotHeadsShareATask) {
  for (const DType dtype : kDTypes)
    for (const bool has_options : {false, true}) {
      Options o = of_dtype(dtype);
      o.is_causal = o.bottom_right = true;
      if (has_options) {
        o.bias = "HNM";
        o.sink = "H";
        o.dropout_p = 0.3;
      }
      const cpu::Implementation cuda = fast_implementations()[0];
      Case together({2, 6, 2, 3, 600, 16, 24}, o);
      o.layout = Layout::kHeadsInside;
      Case apart(together.shape, o);
      const auto want = apart.run(cuda.forward), got = together.run(cuda.forward);
      for (size_t i = 0; i < want.size(); ++i)
        want[i].for_each([&](auto... at) { EXPECT_EQ(got[i].get(at...), want[i].get(at...)); });
    }
}

TEST(DecodeTest, HiddenAndVisibleNanInAGroup) {
  for (const DType dtype : kDTypes)
    for (const double poison : {kInf, kNan}) {
      Options o = of_dtype(dtype);
      o.mask = "HNM";
      Case c({1, 8, 2, 1, 70, 8, 8}, o);
      for (int64_t h = 0; h < 8; ++h)
        c.mask.set(0, h, 0, 40, h == 5);  // one head of the second group
      for (Tensor* t : {&c.key, &c.value})
        for (const int64_t head : {0, 1}) t->set(0, head, 40, 3, poison);
      expect_agreement(c);
    }
}

}  // namespace
}  // namespace torch_ext::test
