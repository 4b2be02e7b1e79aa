// The Hopper backward on the host implementation of its primitives, against the reference: lengths
// around the edges of tiles, windows, grouped heads, layouts, values that must stay hidden, and
// copies and products that happen early or late, in several orders of the threads.
#include <gtest/gtest.h>

#include "cuda/hopper/backward/launch.h"
#include "cuda/hopper/forward/launch.h"
#include "cuda/hopper/serves.h"
#include "hopper_cases.h"

namespace torch_ext::test {
namespace {

namespace hopper = cuda::hopper;

constexpr int64_t kHeadSizes[] = {64, 128, 256};
constexpr const char* kGradients[] = {"grad_query", "grad_key",    "grad_value",
                                      "grad_bias",  "grad_slopes", "grad_sink"};

template <class E>
bool backward_of(const BackwardProblem& p, const cuda::Launch& launch) {
  if (p.head_size == 64) return hopper::backward_for<E, 64>(p, launch);
  if (p.head_size == 128) return hopper::backward_for<E, 128>(p, launch);
  return hopper::backward_for<E, 256>(p, launch);
}

void hopper_backward(const BackwardProblem& p) {
  ASSERT_TRUE(hopper::fits(p));
  const int64_t bytes = hopper::statistics_bytes(p);
  const FencedMemory workspace((bytes + 255) / 256 * 256);
  const cuda::Launch launch{{}, workspace.begin()};
  ASSERT_TRUE(p.query.dtype == DType::BFloat16 ? backward_of<cuda::BFloat16>(p, launch)
                                               : backward_of<cuda::Float16>(p, launch));
}

std::vector<Tensor> reference_gradients(Case& c) {
  c.run(reference_forward);
  return c.run(reference_backward);
}

void expect_backward(Case& c, const std::vector<Tensor>& want,
                     const cuda::host::Device& device = hopper_device()) {
  SCOPED_TRACE(describe(c.shape, c.options) + describe(device));
  const cuda::host::WithDevice with(device);
  // P and dS are rounded before they are multiplied.
  expect_all_close(c.run(hopper_backward), want, kGradients, {256, epsilon(c.options.dtype)});
}
void expect_backward(Case& c) { expect_backward(c, reference_gradients(c)); }
void expect_backward(const Shape& shape, const Options& options) {
  Case c(shape, options);
  expect_backward(c);
}

TEST(HopperBackwardTest, LengthsAroundTiles) {
  constexpr int64_t kLengths[][2] = {{1, 1},     {63, 130},  {64, 64},  {65, 79},
                                     {128, 128}, {130, 257}, {200, 161}};
  for (const int64_t d : kHeadSizes) {
    int i = 0;
    for (const auto& [n, m] : kLengths) {
      const DType dtype = kDTypes[i++ % 2];
      if (d < 256 || i % 3 == 0) expect_backward({1, 1, 1, n, m, d, d}, options_for(d, dtype));
    }
  }
}

TEST(HopperBackwardTest, Causal) {
  for (const int64_t d : kHeadSizes) {
    for (const bool bottom_right : {false, true}) {
      for (const int64_t m : {100, 270}) {
        Options o = options_for(d, kDTypes[bottom_right]);
        o.is_causal = true;
        o.bottom_right = bottom_right;
        expect_backward({1, 1, 1, 190, m, d, d}, o);
      }
    }
  }
}

TEST(HopperBackwardTest, Windows) {
  for (const int64_t d : kHeadSizes) {
    for (const int64_t width : {0, 1, 130}) {
      Options o = options_for(d, kDTypes[width % 2]);
      o.left = width;
      o.right = width / 2;
      expect_backward({1, 1, 1, 210, 260, d, d}, o);
      o.left = kUnlimited;
      o.right = -width - 1;  // rows without any key, then keys far behind
      expect_backward({1, 1, 1, 210, 260, d, d}, o);
    }
  }
}

// Windows that end where a tile does, for the first or the last row of a warpgroup, and beside it.
TEST(HopperBackwardTest, WindowsThatEndWhereTilesDo) {
  for (const int64_t beside : {-1, 0, 1}) {
    for (const int64_t edge : {63, 79}) {
      Options o = options_for(64, DType::BFloat16);
      o.right = edge + beside;
      expect_backward({1, 1, 1, 190, 200, 64, 64}, o);
      o.right = kUnlimited;
      o.left = edge + beside;
      expect_backward({1, 1, 1, 190, 200, 64, 64}, o);
    }
  }
}

TEST(HopperBackwardTest, LayoutsAndGroups) {
  for (const Layout layout : {Layout::kContiguous, Layout::kHeadsInside}) {
    for (const int64_t key_heads : {1, 2, 6}) {
      Options o = options_for(64, DType::Float16);
      o.layout = layout;
      expect_backward({2, 6, key_heads, 70, 90, 64, 64}, o);
      o.split_batch = true;
      o.is_causal = true;
      expect_backward({4, 6, key_heads, 3, 5, 64, 64}, o);
    }
  }
}

// Which block computes a task, and when, changes no bit.
TEST(HopperBackwardTest, SameBitsForAnyNumberOfBlocks) {
  Options o = options_for(128, DType::Float16);
  o.is_causal = true;
  Case c({1, 4, 2, 200, 300, 128, 128}, o);
  c.run(reference_forward);
  std::vector<std::vector<Tensor>> results;
  for (const int processors : {1, 3, 100}) {
    cuda::host::Device device = hopper_device();
    device.processors = processors;
    const cuda::host::WithDevice with(device);
    results.push_back(c.run(hopper_backward));
  }
  expect_same_bits(results[1], results[0]);
  expect_same_bits(results[2], results[0]);
}

// What is asynchronous may happen at any time between the request and the wait, and threads may run
// in any order.
TEST(HopperBackwardTest, EarlyAndLateInAnyOrder) {
  for (const int64_t d : kHeadSizes) {
    Options o = options_for(d, DType::BFloat16);
    o.left = 100;
    Case c({1, 2, 1, 80, 180, d, d}, o);
    const auto want = reference_gradients(c);
    for (const cuda::host::Device& device : devices_in_any_order()) {
      expect_backward(c, want, device);
    }
  }
}

// Rows of any operand that no or only some rows of the other side see.
TEST(HopperBackwardTest, HiddenInfAndNan) {
  for (const int64_t d : kHeadSizes) {
    for (const double bad : {kInf, kNan}) {
      Options o = options_for(d, kDTypes[bad == kInf]);
      o.is_causal = true;
      Case c({1, 2, 1, 90, 100, d, d}, o);
      for (int64_t j = 80; j < 100; ++j) {
        c.key.set(0, 0, j, j % d, bad);
        c.value.set(0, 0, j, (j + 7) % d, bad);
      }
      c.grad_output.set(0, 1, 30, 3, bad);
      expect_backward(c);
    }
  }
}

// Queries that see no key.
TEST(HopperBackwardTest, RowsWithoutKeys) {
  Options o = options_for(64, DType::BFloat16);
  o.is_causal = true;
  o.bottom_right = true;
  Case c({1, 1, 1, 100, 40, 64, 64}, o);
  c.grad_output.set(0, 0, 10, 3, kInf);
  c.grad_logsumexp.set(0, 0, 11, 0, kNan);
  c.query.set(0, 0, 12, 0, kNan);
  expect_backward(c);
}

TEST(HopperBackwardTest, OneHiddenKey) {
  for (const bool is_first : {false, true}) {
    for (const double bad : {kInf, kNan}) {
      Case c = case_with_one_hidden_key(is_first, bad);
      expect_backward(c);
    }
  }
}

// A query to which all keys are visible, none of which counts: its scores are -inf.
TEST(HopperBackwardTest, RowsWithoutScores) {
  Case c({1, 1, 1, 70, 90, 64, 64}, options_for(64, DType::BFloat16));
  for (int64_t j = 0; j < 90; ++j) c.key.set(0, 0, j, 0, 1);
  c.query.set(0, 0, 12, 0, -kInf);
  expect_backward(c);
}

// Seen by all, they go where the reference has them.
TEST(HopperBackwardTest, VisibleInfAndNan) {
  for (const double bad : {kInf, kNan}) {
    const Options o = options_for(64, DType::BFloat16);
    Case in_value({1, 1, 1, 65, 90, 64, 64}, o), in_gradient({1, 1, 1, 65, 90, 64, 64}, o);
    in_value.value.set(0, 0, 40, 5, bad);
    in_gradient.grad_output.set(0, 0, 40, 5, bad);
    expect_backward(in_value);
    expect_backward(in_gradient);
  }
}

// Weights of queries after the last one would be inf.
TEST(HopperBackwardTest, LargeScores) {
  for (const double scale : {8.0, 1e-3}) {
    Options o = options_for(64, DType::BFloat16);
    o.scale = scale;
    Case c({1, 1, 1, 60, 100, 64, 64}, o);
    const auto want = reference_gradients(c);
    const cuda::host::WithDevice with(hopper_device());
    const double largest_score = std::max(1.0, 30 * scale);
    expect_all_close(c.run(hopper_backward), want, kGradients, {256 * largest_score, 0x1p-7});
  }
}

// Scores so large that what rounding them loses exceeds the exponents of floating-point numbers:
// rows attend to one key each. With the logsumexp of the Hopper forward, which rounds alike.
TEST(HopperBackwardTest, HugeScores) {
  for (const double scale : {1e3, 1e9}) {
    Options o = options_for(64, DType::BFloat16);
    o.scale = scale;
    Case c({1, 2, 1, 70, 140, 64, 64}, o);
    const auto want = reference_gradients(c);
    const cuda::host::WithDevice with(hopper_device());
    c.run(+[](const ForwardProblem& p) { hopper::forward_for<cuda::BFloat16, 64>(p, {}); });
    expect_close(c.run(hopper_backward)[2], want[2], "grad_value", {256, 0x1p-7});
  }
}

// A result that is not wanted is not touched, whichever it is.
TEST(HopperBackwardTest, WantedGradientsOnly) {
  using Edit = void (*)(BackwardProblem&);
  for (const int64_t d : kHeadSizes) {
    Case c({1, 1, 1, 70, 66, d, d}, options_for(d, DType::Float16));
    const auto want = reference_gradients(c);
    for (const Edit edit : {Edit([](BackwardProblem& p) { p.grad_query = {}; }),
                            Edit([](BackwardProblem& p) { p.grad_key = {}; }),
                            Edit([](BackwardProblem& p) { p.grad_value = {}; }),
                            Edit([](BackwardProblem& p) { p.grad_key = p.grad_value = {}; })}) {
      static Edit change;
      change = edit;
      BackwardProblem wanted;
      static BackwardProblem* seen;
      seen = &wanted;
      const cuda::host::WithDevice with(hopper_device());
      const auto got = c.run(+[](const BackwardProblem& p) {
        *seen = p;
        change(*seen);
        hopper_backward(*seen);
      });
      const Operand* operands[] = {&wanted.grad_query, &wanted.grad_key, &wanted.grad_value};
      for (int i = 0; i < 3; ++i) {
        if (*operands[i]) {
          expect_close(got[i], want[i], kGradients[i], {256, epsilon(DType::Float16)});
        } else {
          EXPECT_TRUE(std::isnan(got[i].get(0, 0, 0, 0)));
        }
      }
    }
  }
}

TEST(HopperBackwardTest, ServesOnlyWhatItCan) {
  using Edit = void (*)(BackwardProblem&);
  const auto is_served = [](const Shape& shape, const Options& o, Edit edit) {
    static bool answer;
    static Edit change;
    change = edit;
    Case(shape, o).run(+[](const BackwardProblem& p) {
      BackwardProblem changed = p;
      change(changed);
      answer = hopper::serves(changed);
    });
    return answer;
  };
  const Shape shape{2, 4, 2, 65, 8, 64, 64};
  const Options good = options_for(64, DType::BFloat16);
  const Edit nothing = [](BackwardProblem&) {};
  EXPECT_TRUE(is_served(shape, good, nothing));
  EXPECT_TRUE(is_served(shape, good, [](BackwardProblem& p) { p.grad_logsumexp = {}; }));
  EXPECT_TRUE(is_served(shape, good, [](BackwardProblem& p) { p.grad_query = {}; }));
  EXPECT_FALSE(is_served(shape, good, [](BackwardProblem& p) { p.grad_output = {}; }));
  EXPECT_FALSE(is_served(shape, good, [](BackwardProblem& p) { p.grad_output.col_stride = 0; }));
  EXPECT_FALSE(is_served(shape, good, [](BackwardProblem& p) { p.grad_output.row_stride = 0; }));
  EXPECT_FALSE(is_served(shape, good, [](BackwardProblem& p) { p.output.col_stride = 2; }));
  EXPECT_FALSE(is_served(shape, good, [](BackwardProblem& p) { p.grad_key.row_stride = 65; }));
  EXPECT_FALSE(
      is_served(shape, good, [](BackwardProblem& p) { p.grad_value.dtype = DType::Float32; }));
  EXPECT_FALSE(is_served({2, 4, 2, 64, 8, 64, 64}, good, nothing));  // few queries
  Options softcap = good;
  softcap.softcap = 1;
  EXPECT_FALSE(is_served(shape, softcap, nothing));
}

}  // namespace
}  // namespace torch_ext::test
