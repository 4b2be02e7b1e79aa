// The partial sums of the backward stay within their memory, and none overlaps another.
#include "cpu/kernels/derivatives/backward_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

constexpr int64_t kLengths[] = {0,   1,   63,  64,   65,   95,   96,    97,    383,
                                384, 385, 400, 1000, 3071, 3073, 10000, 100001};

constexpr Choices kNumbers;

// So many that no task adds up row chunks.
constexpr int64_t kThreads = 64;

// A gradient that is asked for: any address but null.
char placeholder;

BackwardProblem problem(int64_t n, int64_t m, int64_t heads = 1, int64_t group = 1) {
  BackwardProblem p;
  p.leading_dims = 1;
  p.leading_sizes[0] = heads;
  p.group = group;
  p.query_length = n;
  p.key_length = m;
  p.head_size = 40;
  p.value_head_size = 33;
  p.grad_query.data = p.grad_key.data = p.grad_value.data = &placeholder;
  return p;
}

void ask_for_bias(BackwardProblem& p, int64_t head, int64_t row, int64_t col) {
  p.grad_bias.data = &placeholder;
  p.grad_bias.leading_strides[0] = head;
  p.grad_bias.row_stride = row;
  p.grad_bias.col_stride = col;
}

TEST(BackwardPlanTest, OrderOfSumsDoesNotDependOnTheNumberOfHeads) {
  for (const int64_t n : kLengths)
    for (const int64_t m : kLengths)
      for (const int64_t group : {1, 16}) {
        const BackwardPlan<float> one(problem(n, m, group, group), 2),
            many(problem(n, m, 48, group), 2);
        EXPECT_EQ(one.keys.size, many.keys.size);
        EXPECT_EQ(one.keys.count, many.keys.count);
        EXPECT_EQ(one.queries.size, many.queries.size);
        EXPECT_EQ(one.queries.count, many.queries.count);
        EXPECT_EQ(one.heads.size, many.heads.size);
        EXPECT_EQ(one.heads.count, many.heads.count);
      }
}

TEST(BackwardPlanTest, PartialSumsAreLinearInTheLengthsAndWavesAreBounded) {
  for (const int64_t n : kLengths)
    for (const int64_t m : kLengths)
      for (const int64_t group : {1, 4}) {
        BackwardProblem p = problem(n, m, 32 * group, group);
        for (const auto& [bias, threads] :
             {std::pair<bool, int64_t>{false, 1}, {false, kThreads}, {true, 1}, {true, kThreads}}) {
          if (bias) ask_for_bias(p, n * m, m, 1);
          const BackwardPlan<double> plan(p, threads);
          int64_t most =
              kNumbers.most_chunks * ((group * n + m) * plan.head_columns + m * plan.value_columns);
          if (plan.bias == BiasGradient::kPrivate) {
            EXPECT_LE(plan.bias_slice, kNumbers.private_slice);
            most += group * kNumbers.most_chunks * kNumbers.private_slice;
          }
          EXPECT_LE(plan.partial(), most);
          EXPECT_GE(plan.wave, 1);
          EXPECT_LE(plan.wave, p.key_heads());
          EXPECT_TRUE(plan.wave == 1 ||
                      plan.wave * plan.partial() * int64_t{8} <= kNumbers.partial_mib << 20);
        }
      }
}

TEST(BackwardPlanTest, OnlyWhatIsAskedForTakesMemory) {
  BackwardProblem p = problem(3000, 3000);
  p.grad_query.data = nullptr;
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).partial(), 0);
  p = problem(3000, 100);  // few keys: the queries are cut
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).dq_partial, 0);
  p.grad_key.data = p.grad_value.data = nullptr;
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).partial(), 0);
}

TEST(BackwardPlanTest, BiasGradientsThatHeadsShareTakeTurns) {
  BackwardProblem p = problem(1000, 1000, 8);
  ask_for_bias(p, 1000 * 1000, 1000, 1);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).bias, BiasGradient::kDirect);
  EXPECT_GT(BackwardPlan<float>(p, kThreads).wave, 1);
  p.grad_bias.leading_strides[0] = 0;
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).bias, BiasGradient::kDirect);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).wave, 1);
  p.group = 8;  // one key head: its query heads take turns anyway
  EXPECT_EQ(heads_apart(p), 1);
  p.group = 2;
  p.leading_dims = 3;  // (5, 3, 8), shared along the first or the second
  p.leading_sizes[0] = 5;
  p.leading_sizes[1] = 3;
  p.leading_sizes[2] = 8;
  int64_t* strides = p.grad_bias.leading_strides;
  strides[0] = 0, strides[1] = 8 * 1000 * 1000, strides[2] = 1000 * 1000;
  EXPECT_EQ(heads_apart(p), 3 * 4);
  strides[0] = strides[1], strides[1] = 0;
  EXPECT_EQ(heads_apart(p), 4);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).wave, 4);
  strides[2] = 0;
  EXPECT_EQ(heads_apart(p), 1);
  p = problem(1000, 1000, 8);
  ask_for_bias(p, 0, 0, 1);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).bias, BiasGradient::kPrivate);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).bias_slice, 1000);
}

TEST(BackwardPlanTest, BiasSlicesAreNoMoreThanAreWrittenAtTheSameTime) {
  BackwardProblem p = problem(100, 3000, 4, 2);
  const int64_t key_chunks = BackwardPlan<float>(p, kThreads).keys.count;
  ask_for_bias(p, 0, 0, 1);  // shared by all heads; key chunks write their own keys
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).bias_partial, 3000);
  ask_for_bias(p, 3000, 0, 1);  // one for each query head
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).bias_partial, 2 * 3000);
  ask_for_bias(p, 0, 1, 0);  // all key chunks add to each row
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).bias_partial, key_chunks * 100);
}

TEST(BackwardPlanTest, CellsCoverEveryHeadQueryAndKeyOnce) {
  for (const auto& [n, m, group] :
       {std::array<int64_t, 3>{1, 1, 1}, {500, 20, 1}, {20, 500, 5}, {20, 30, 41}, {700, 30, 6}}) {
    const BackwardProblem p = problem(n, m, 2 * group, group);
    const BackwardPlan<float> plan(p, kThreads);
    std::vector<int> count(static_cast<size_t>(2 * group * n * m));
    for (int64_t task = 0; task < 2 * plan.cells(); ++task) {
      const Cell c = plan.cell(p, 0, task);
      EXPECT_EQ(c.in_wave, c.head / group);
      EXPECT_EQ(c.in_wave, (c.head + c.heads - 1) / group);
      for (int64_t h = c.head; h < c.head + c.heads; ++h)
        for (int64_t i = c.query; i < c.query_end; ++i)
          for (int64_t j = c.key; j < c.key_end; ++j) ++count.at((h * n + i) * m + j);
    }
    EXPECT_TRUE(std::all_of(count.begin(), count.end(), [](int times) { return times == 1; }))
        << n << " " << m << " " << group;
    EXPECT_EQ(plan.cell(p, 0, -1).head, -1);
  }
}

TEST(BackwardPlanTest, TasksTakeAllRowsOfTheirKeysWhereTheyKeepThreadsBusy) {
  const struct {
    int64_t heads, threads;
    bool joins;
  } table[] = {{1, 1, true},   {3, 1, true},  {1, 2, false},  {2, 2, true},
               {3, 2, false},  {8, 3, false}, {9, 3, true},   {9, 10, true},
               {9, 11, false}, {45, 7, true}, {44, 7, false}, {1000, 7, true}};
  for (const auto& [heads, threads, joins] : table) {
    const BackwardProblem p = problem(500, 100, heads);
    const BackwardPlan<float> plan(p, threads);
    ASSERT_EQ(plan.row_chunks(), 8);
    EXPECT_EQ(plan.joins_rows, joins) << heads << " " << threads;
    EXPECT_EQ(plan.dk_partial == 0 && plan.dv_partial == 0, joins) << heads << " " << threads;
    for (int64_t i = 0; i < 3 * plan.cells() && i < heads * plan.cells(); ++i) {
      const Cell cell = plan.cell(p, 0, i);
      EXPECT_EQ(cell.is_first, !joins || cell.row_chunk == 0);
      EXPECT_EQ(cell.is_last, !joins || cell.row_chunk == 7);
    }
  }
  // Heads that share a bias gradient take turns: those of one turn count.
  BackwardProblem p = problem(500, 300, 8);
  ask_for_bias(p, 0, 300, 1);
  EXPECT_EQ(BackwardPlan<float>(p, 2).wave, 1);
  EXPECT_FALSE(BackwardPlan<float>(p, 2).joins_rows);
  ask_for_bias(p, 500 * 300, 300, 1);
  EXPECT_TRUE(BackwardPlan<float>(p, 2).joins_rows);
  EXPECT_FALSE(BackwardPlan<float>(problem(500, 1000, 8), 2).joins_rows);  // keys are cut
}

TEST(BackwardPlanTest, HeadsThatShareABiasGradientAreInOneTask) {
  BackwardProblem p = problem(128, 100, 4, 4);
  ask_for_bias(p, 0, 100, 1);
  const BackwardPlan<float> shared(p, kThreads);
  EXPECT_EQ(shared.queries.count, 2);
  EXPECT_EQ(shared.heads.count, 4);
  EXPECT_EQ(shared.task_cells, 4);
  for (int64_t i = 0; i < shared.cells(); ++i) {
    const Cell cell = shared.cell(p, 0, i);
    EXPECT_EQ(cell.query_chunk, i / 4);
    EXPECT_EQ(cell.head, i % 4);
    EXPECT_EQ(cell.is_first, i % 4 == 0);
    EXPECT_EQ(cell.is_last, i % 4 == 3);
  }
  EXPECT_FALSE(shared.joins_rows);
  ask_for_bias(p, 128 * 100, 100, 1);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).task_cells, 1);
  p = problem(200, 380, 4, 4);
  ask_for_bias(p, 0, 380, 1);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).bias, BiasGradient::kDirect);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).heads.count, 2);
  EXPECT_EQ(BackwardPlan<float>(p, kThreads).task_cells, 2);
}

TEST(BackwardPlanTest, SlotsOfPartialSumsDoNotOverlap) {
  constexpr int64_t kNoBias = -1;
  for (const auto& [n, m, leading] : {std::array<int64_t, 3>{500, 1000, 0},
                                      {1000, 100, 0},
                                      {500, 1000, 7},
                                      {1000, 100, 7},
                                      {1000, 100, kNoBias},
                                      {64, 100, 0},
                                      {64, 100, 7},
                                      {64, 100, kNoBias}}) {
    BackwardProblem p = problem(n, m, 4, 2);
    if (leading != kNoBias) ask_for_bias(p, leading, 0, 1);
    const BackwardPlan<float> plan(p, kThreads);
    EXPECT_EQ(plan.heads.count, n == 64 ? 2 : 1);
    const BackwardPartials<float> partials{nullptr};
    std::vector<std::pair<int64_t, int64_t>> slots;  // begin, length
    const auto add = [&](const float* at, int64_t length) {
      slots.emplace_back(reinterpret_cast<intptr_t>(at) / 4, length);
    };
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t member = 0; member < p.group; ++member) {
        for (int64_t chunk = 0; plan.dq_partial && chunk < plan.keys.count; ++chunk)
          add(partials.dq(plan, p, head, member, chunk), n * plan.head_columns);
        for (int64_t chunk = 0;
             p.grad_bias && member < plan.bias_heads && chunk < plan.bias_chunks(); ++chunk)
          add(partials.bias(plan, head, member, chunk), plan.bias_slice);
      }
      for (int64_t chunk = 0; plan.dk_partial && chunk < plan.row_chunks(); ++chunk) {
        add(partials.dk(plan, p, head, chunk), m * plan.head_columns);
        add(partials.dv(plan, p, head, chunk), m * plan.value_columns);
      }
    }
    std::sort(slots.begin(), slots.end());
    int64_t end = 0;
    for (const auto& [begin, length] : slots) {
      EXPECT_EQ(begin, end);  // no overlap, and nothing wasted
      end = begin + length;
    }
    EXPECT_EQ(end, 2 * plan.partial());
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
