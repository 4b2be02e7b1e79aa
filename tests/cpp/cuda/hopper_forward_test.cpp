// The Hopper forward on the host implementation of its primitives, against the reference: lengths
// around the edges of tiles, windows, grouped heads, layouts, values that must stay hidden, and
// copies and products that happen early or late, in several orders of the threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "cuda/hopper/forward/launch.h"
#include "cuda/hopper/serves.h"
#include "hopper_cases.h"

namespace torch_ext::test {
namespace {

namespace hopper = cuda::hopper;

template <class E>
bool forward_of(const ForwardProblem& p) {
  if (p.head_size == 64) return hopper::forward_for<E, 64>(p, {});
  if (p.head_size == 128) return hopper::forward_for<E, 128>(p, {});
  return hopper::forward_for<E, 256>(p, {});
}

void hopper_forward(const ForwardProblem& p) {
  ASSERT_TRUE(hopper::fits(p));
  ASSERT_TRUE(p.query.dtype == DType::BFloat16 ? forward_of<cuda::BFloat16>(p)
                                               : forward_of<cuda::Float16>(p));
}

struct Size {
  int64_t head_size, queries, keys;  // of a tile
};
// Heads of 128 have tiles of 176 keys where nothing is hidden, else of 128.
constexpr Size kSizes[] = {{64, 192, 128}, {128, 128, 176}, {256, 128, 80}};
void expect_forward(Case& c, const std::vector<Tensor>& want,
                    const cuda::host::Device& device = hopper_device()) {
  SCOPED_TRACE(describe(c.shape, c.options) + describe(device));
  const cuda::host::WithDevice with(device);
  const auto got = c.run(hopper_forward);
  // Weights are rounded before they are multiplied.
  expect_close(got[0], want[0], "output", {64, epsilon(c.options.dtype)});
  expect_close_logsumexp(got, want, 64);
}

void expect_forward(Case& c) { expect_forward(c, c.run(reference_forward)); }

void expect_forward(const Shape& shape, const Options& options) {
  Case c(shape, options);
  expect_forward(c);
}

TEST(HopperForwardTest, LengthsAroundTiles) {
  for (const Size& size : kSizes) {
    for (const int64_t n : {int64_t{1}, int64_t{63}, size.queries, size.queries + 1}) {
      for (const int64_t m : {int64_t{1}, size.keys - 1, size.keys, 2 * size.keys + 9}) {
        const DType dtype = kDTypes[(n + m) % 2];
        expect_forward({1, 1, 1, n, m, size.head_size, size.head_size},
                       options_for(size.head_size, dtype));
      }
    }
  }
}

TEST(HopperForwardTest, Causal) {
  for (const Size& size : kSizes) {
    for (const bool bottom_right : {false, true}) {
      for (const int64_t m : {int64_t{100}, int64_t{300}}) {
        Options o = options_for(size.head_size, kDTypes[bottom_right]);
        o.is_causal = true;
        o.bottom_right = bottom_right;
        expect_forward({1, 1, 1, 200, m, size.head_size, size.head_size}, o);
      }
    }
  }
}

TEST(HopperForwardTest, Windows) {
  for (const Size& size : kSizes) {
    for (const int64_t width : {0, 1, 130}) {
      Options o = options_for(size.head_size, kDTypes[width % 2]);
      o.left = width;
      o.right = width / 2;
      expect_forward({1, 1, 1, 257, 300, size.head_size, size.head_size}, o);
      o.left = kUnlimited;
      o.right = -width - 1;  // rows without any key, then keys far behind
      expect_forward({1, 1, 1, 257, 300, size.head_size, size.head_size}, o);
    }
  }
}

// Windows that end where a tile does, for the first or the last query of a warpgroup, and beside
// it.
TEST(HopperForwardTest, WindowsThatEndWhereTilesDo) {
  for (const Size& size : kSizes) {
    const int64_t right = size.head_size == 256 ? 15 : 63, left = size.head_size == 256 ? 47 : 63;
    for (const int64_t beside : {-1, 0, 1}) {
      Options o = options_for(size.head_size, DType::BFloat16);
      o.right = right + beside;
      expect_forward({1, 1, 1, 190, 260, size.head_size, size.head_size}, o);
      o.right = kUnlimited;
      o.left = left + beside;
      expect_forward({1, 1, 1, 190, 260, size.head_size, size.head_size}, o);
    }
  }
}

// More tasks than blocks: rings and barriers go on from task to task, some of which have no keys.
TEST(HopperForwardTest, ManyTasksPerBlock) {
  for (const Size& size : kSizes) {
    Options o = options_for(size.head_size, DType::BFloat16);
    const Shape shape{1, 4, 2, size.queries + 40, size.keys + 30, size.head_size, size.head_size};
    expect_forward(shape, o);
    o.right = -150;
    expect_forward(shape, o);
  }
}

TEST(HopperForwardTest, LayoutsAndGroups) {
  for (const Layout layout : {Layout::kContiguous, Layout::kHeadsInside}) {
    for (const int64_t key_heads : {1, 2, 6}) {
      Options o = options_for(64, DType::Float16);
      o.layout = layout;
      expect_forward({2, 6, key_heads, 70, 90, 64, 64}, o);
      o.split_batch = true;
      expect_forward({4, 6, key_heads, 3, 5, 64, 64}, o);
    }
  }
}

// One key and value for all of the batch.
TEST(HopperForwardTest, BroadcastKeys) {
  using Forward = void (*)(const ForwardProblem&);
  const auto broadcast = [](const ForwardProblem& p, Forward forward) {
    ForwardProblem q = p;
    q.key.leading_strides[0] = q.value.leading_strides[0] = 0;
    forward(q);
  };
  static const auto run = broadcast;
  Case c({3, 2, 1, 70, 40, 64, 64}, options_for(64, DType::BFloat16));
  const cuda::host::WithDevice with(hopper_device());
  const auto want = c.run(+[](const ForwardProblem& p) { run(p, reference_forward); });
  const auto got = c.run(+[](const ForwardProblem& p) { run(p, hopper_forward); });
  expect_close(got[0], want[0], "output", {64, 0x1p-7});
  expect_close_logsumexp(got, want, 64);
}

// Which block computes a task, and when, changes no bit.
TEST(HopperForwardTest, SameBitsForAnyNumberOfBlocks) {
  Options o = options_for(128, DType::Float16);
  o.is_causal = true;
  Case c({1, 4, 2, 300, 300, 128, 128}, o);
  std::vector<std::vector<unsigned char>> results;
  for (const int processors : {1, 3, 100}) {
    cuda::host::Device device = hopper_device();
    device.processors = processors;
    const cuda::host::WithDevice with(device);
    for (const Tensor& t : c.run(hopper_forward)) results.push_back(t.bytes());
  }
  for (size_t i = 3; i < results.size(); ++i) EXPECT_EQ(results[i], results[i % 3]);
}

TEST(HopperForwardTest, OperandsAreDescribedByTheirStrides) {
  Problem p;
  p.leading_dims = 4;
  std::copy_n(std::initializer_list<int64_t>{2, 3, 5, 8}.begin(), 4, p.leading_sizes);
  p.group = 4;
  alignas(16) static uint16_t data[8];
  Operand x;
  x.data = data;
  x.row_stride = 64;
  x.col_stride = 1;
  const auto describe = [&](std::initializer_list<int64_t> strides) {
    std::copy(strides.begin(), strides.end(), x.leading_strides);
    return hopper::describe_operand(p, x, 10, 64, p.group);
  };
  // Two heads of 640 elements; 5, 3 and 2 lie one after another.
  const auto dense = describe({3 * 5 * 1280, 5 * 1280, 1280, 640});
  ASSERT_TRUE(dense);
  EXPECT_EQ(dense->tensor.sizes[2], 2 * 5 * 3 * 2);
  EXPECT_EQ(dense->tensor.strides[2], 640);
  EXPECT_EQ(dense->heads.divisor[0], 4);
  EXPECT_EQ(dense->heads.size[0], 60);
  EXPECT_EQ(dense->heads.size[1], 1);
  // Without the dimension of size 5 two groups of dimensions are left.
  const auto broadcast = describe({3 * 1280, 1280, 0, 640});
  ASSERT_TRUE(broadcast);
  EXPECT_EQ(broadcast->heads.size[0], 2);
  EXPECT_EQ(broadcast->heads.divisor[1], 8 * 5);
  EXPECT_EQ(broadcast->heads.size[1], 6);
  EXPECT_EQ(broadcast->tensor.strides[3], 1280);
  EXPECT_FALSE(describe({640, 1280 * 7, 1280 * 3, 1280 * 5}));      // four dimensions of heads
  EXPECT_FALSE(describe({3 * 5 * 1280, 5 * 1280, 1280, 644}));      // not a multiple of 16 bytes
  EXPECT_FALSE(describe({int64_t{1} << 40, 5 * 1280, 1280, 640}));  // too far apart
  x.row_stride = 56;
  EXPECT_FALSE(describe({3 * 5 * 1280, 5 * 1280, 1280, 640}));  // rows overlap
}

// What is asynchronous may happen at any time between the request and the wait, and threads may run
// in any order.
TEST(HopperForwardTest, EarlyAndLateInAnyOrder) {
  for (const Size& size : kSizes) {
    Options o = options_for(size.head_size, DType::BFloat16);
    o.left = 3 * size.keys;
    Case c({1, 2, 1, size.queries, 5 * size.keys, size.head_size, size.head_size}, o);
    const auto want = c.run(reference_forward);
    for (const cuda::host::Device& device : devices_in_any_order()) expect_forward(c, want, device);
  }
}

// Rows of the key or value that some or all queries do not see.
TEST(HopperForwardTest, HiddenInfAndNan) {
  for (const Size& size : kSizes) {
    for (const DType dtype : kDTypes) {
      for (const double bad : {kInf, -kInf, kNan}) {
        Options o = options_for(size.head_size, dtype);
        o.is_causal = true;
        Case c({1, 1, 1, 150, 260, size.head_size, size.head_size}, o);
        for (int64_t j = 140; j < 260; ++j) {
          c.key.set(0, 0, j, j % size.head_size, bad);
          c.value.set(0, 0, j, (j + 7) % size.head_size, bad);
        }
        expect_forward(c);
      }
    }
  }
}

TEST(HopperForwardTest, OneHiddenKey) {
  for (const bool is_first : {false, true}) {
    for (const double bad : {kInf, kNan}) {
      Case c = case_with_one_hidden_key(is_first, bad);
      expect_forward(c);
    }
  }
}

// Seen by all queries, they go where the reference has them.
TEST(HopperForwardTest, VisibleInfAndNan) {
  for (const Size& size : kSizes) {
    for (const double bad : {kInf, kNan}) {
      Case c({1, 1, 1, 65, 200, size.head_size, size.head_size},
             options_for(size.head_size, DType::BFloat16));
      c.value.set(0, 0, 190, 5, bad);
      expect_forward(c);
      c.query.set(0, 0, 3, 1, bad);
      expect_forward(c);
    }
  }
}

// A row whose scores are all -inf is 0, whatever its weights of 0 meet; other rows are NaN there.
TEST(HopperForwardTest, RowsWithoutScores) {
  Case c({1, 1, 1, 70, 90, 64, 64}, options_for(64, DType::BFloat16));
  for (int64_t j = 0; j < 90; ++j) c.key.set(0, 0, j, 0, 1);
  c.query.set(0, 0, 12, 0, -kInf);
  c.value.set(0, 0, 40, 5, kNan);
  expect_forward(c);
  for (int64_t e = 0; e < 64; ++e) EXPECT_EQ(c.output.get(0, 0, 12, e), 0);
}

TEST(HopperForwardTest, LargeScores) {
  for (const double scale : {8.0, 1e-3}) {
    Options o = options_for(64, DType::BFloat16);
    o.scale = scale;
    Case c({1, 1, 1, 60, 300, 64, 64}, o);
    const cuda::host::WithDevice with(hopper_device());
    const auto want = c.run(reference_forward), got = c.run(hopper_forward);
    expect_close(got[0], want[0], "output", {64 * std::max(1.0, 30 * scale), 0x1p-7});
    expect_close_logsumexp(got, want, 64 * std::max(1.0, 30 * scale));
  }
}

// All keys have the same weight, tile after tile, whatever rounding their score loses.
TEST(HopperForwardTest, LongRowsDoNotDrift) {
  for (const Size& size : kSizes) {
    const int64_t m = 40 * size.keys, d = size.head_size;
    Case c({1, 1, 1, 1, m, d, d}, options_for(d, DType::Float16));
    c.query.fill([&] { return 650 / std::sqrt(static_cast<double>(d)); });
    c.key.fill([] { return 6.3; });
    c.value.for_each([&](auto b, auto h, auto j, auto e) { c.value.set(b, h, j, e, 2 * j >= m); });
    const cuda::host::WithDevice with(hopper_device());
    EXPECT_EQ(c.run(hopper_forward)[0].get(0, 0, 0, 0), 0.5);
  }
}

// Scores so large that what rounding them loses exceeds the exponents of floating-point numbers:
// the weight of the largest would be 0 for one row, inf for another. One row at a time, since a row
// that is not finite has its neighbours computed anew, too.
TEST(HopperForwardTest, HugeScores) {
  for (const double scale : {1e3, 1e9, 1e30}) {
    for (const uint64_t seed : {1, 2, 3, 4, 5, 6}) {
      Options o = options_for(64, DType::BFloat16);
      o.scale = scale;
      Case c({1, 1, 1, 1, 40, 64, 64}, o, seed);
      const cuda::host::WithDevice with(hopper_device());
      const auto want = c.run(reference_forward), got = c.run(hopper_forward);
      expect_close(got[0], want[0], "output", {64, 0x1p-7});
      expect_close(got[1], want[1], "logsumexp", {8});
    }
  }
}

TEST(HopperForwardTest, ServesOnlyWhatItCan) {
  const auto is_served = [](const Shape& shape, const Options& o) {
    static bool answer;
    Case(shape, o).run(+[](const ForwardProblem& p) { answer = hopper::serves(p); });
    return answer;
  };
  const Shape shape{2, 4, 2, 65, 8, 64, 64};
  const Options good = options_for(64, DType::BFloat16);
  EXPECT_TRUE(is_served(shape, good));
  const auto change = [&](auto&& edit) {
    Options o = good;
    edit(o);
    return is_served(shape, o);
  };
  EXPECT_FALSE(change([](Options& o) { o.dtype = DType::Float32; }));
  EXPECT_FALSE(change([](Options& o) { o.layout = Layout::kTransposed; }));
  EXPECT_FALSE(change([](Options& o) { o.layout = Layout::kGaps; }));
  EXPECT_FALSE(change([](Options& o) { o.mask = "BHNM"; }));
  EXPECT_FALSE(change([](Options& o) { o.bias = "NM"; }));
  EXPECT_FALSE(change([](Options& o) { o.slopes = "H"; }));
  EXPECT_FALSE(change([](Options& o) { o.sink = "H"; }));
  EXPECT_FALSE(change([](Options& o) { o.softcap = 1; }));
  EXPECT_FALSE(change([](Options& o) { o.dropout_p = 0.5; }));
  EXPECT_FALSE(change([](Options& o) { o.scale = 0; }));
  EXPECT_FALSE(change([](Options& o) { o.scale = -1; }));
  EXPECT_FALSE(is_served({1, 1, 1, 65, 8, 96, 96}, good));
  EXPECT_FALSE(is_served({1, 1, 1, 65, 8, 64, 128}, good));
  EXPECT_FALSE(is_served({1, 1, 1, 65, 0, 64, 64}, good));
  EXPECT_FALSE(is_served({1, 1, 1, 0, 8, 64, 64}, good));
  EXPECT_FALSE(is_served({2, 4, 2, 64, 8, 64, 64}, good));  // few queries
}

}  // namespace
}  // namespace torch_ext::test
