// The host implementation of the Hopper primitives: layouts by their definition, and that misuse is
// noticed.
#include <gtest/gtest.h>

#include <vector>

#include "cuda/primitives/hopper_copy.h"
#include "cuda/primitives/hopper_matrix.h"
#include "host_threads.h"

namespace torch_ext::cuda::test {
namespace {

constexpr int kRows = 64, kColumns = 128;

uint16_t bits_of(double x) { return from_float<Float16>(static_cast<float>(x)).bits; }

// Small integers: products and sums are exact.
double element(int r, int c) { return (r * 7 + c * 3) % 11 - 5; }

// A matrix of `rows` rows of 128 columns, as the comment in hopper_descriptor.h has it in memory.
void write_matrix(unsigned char* shared, int rows) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      const int chunk = c % 64 / 8 ^ r % 8;
      const uint16_t bits = bits_of(element(r, c));
      std::memcpy(shared + c / 64 * rows * 128 + r * 128 + chunk * 16 + c % 8 * 2, &bits, 2);
    }
  }
}

struct Tile {
  alignas(kSwizzleBytes) unsigned char matrix[kRows * kColumns * 2];
  SharedBarrier barrier;
};
Tile& tile() { return *reinterpret_cast<Tile*>(shared_memory()); }

// C(i, j) of a thread's accumulator `at`.
int row_of(int at) { return thread_index() / 32 * 16 + lane_index() / 4 + at / 2 % 2 * 8; }
int column_of(int at) { return at / 4 * 8 + lane_index() % 4 * 2 + at % 2; }

// X Xᵀ of the first 80 of 128 columns, X having 64 rows: both operands in shared memory.
TEST(HopperPrimitivesTest, ProductOfSharedOperands) {
  in_some_orders([] {
    int wrong = 0;
    run_threads<128>(
        [&] {
          if (thread_index() == 0) write_matrix(tile().matrix, kRows);
          block_barrier();
          float c[kRows / 2];
          begin_products();
          for (int k = 0; k < 80; k += 16) {
            const MatrixDescriptor x = describe_matrix(shared_address(tile().matrix), 0) +
                                       (k / 64 * kRows * 128 + k % 64 * 2);
            multiply_add<Float16>(c, x, x, k > 0);
          }
          commit_products();
          wait_for_products<0>(c);
          for (int at = 0; at < kRows / 2; ++at) {
            double want = 0;
            for (int k = 0; k < 80; ++k) want += element(row_of(at), k) * element(column_of(at), k);
            wrong += c[at] != want;
          }
        },
        sizeof(Tile));
    EXPECT_EQ(wrong, 0);
  });
}

// C += A X with A (64 x 32) in registers and rows 16 … 47 of X.
TEST(HopperPrimitivesTest, ProductOfRegistersByTransposedOperand) {
  in_some_orders([] {
    int wrong = 0;
    run_threads<128>(
        [&] {
          if (thread_index() == 0) write_matrix(tile().matrix, kRows);
          block_barrier();
          const auto a_of = [](int i, int k) { return (i * 5 + k) % 7 - 3; };
          float c[kColumns / 2];
          for (float& x : c) x = 1;
          uint32_t a[2][4];
          for (int k = 0; k < 32; ++k) {
            if (k % 8 / 2 != lane_index() % 4) continue;
            for (int r = 0; r < 2; ++r) {
              uint32_t& pair = a[k / 16][r + k % 16 / 8 * 2];
              const uint32_t bits = bits_of(a_of(row_of(2 * r), k));
              pair = k % 2 == 0 ? bits : pair | bits << 16;
            }
          }
          begin_products();
          for (int k = 0; k < 32; k += 16) {
            multiply_add<Float16>(
                c, a[k / 16],
                describe_matrix(shared_address(tile().matrix), kRows * 128) + (16 + k) * 128, true);
          }
          commit_products();
          wait_for_products<0>(c);
          for (int at = 0; at < kColumns / 2; ++at) {
            double want = 1;
            for (int k = 0; k < 32; ++k)
              want += a_of(row_of(at), k) * element(16 + k, column_of(at));
            wrong += c[at] != want;
          }
        },
        sizeof(Tile));
    EXPECT_EQ(wrong, 0);
  });
}

// What a warp does with copies that happen early, then late.
template <class Body>
void with_copies_early_and_late(const Body& body) {
  for (const bool copies_early : {false, true}) {
    host::Device changed = host::device();
    changed.copies_early = copies_early;
    const host::WithDevice with(changed);
    run_threads<32>(body, sizeof(Tile));
  }
}

// A tensor (64 columns, 20 rows, 2 heads) and tiles of 16 rows.
struct Source {
  std::vector<uint16_t> data;
  TensorMap map;

  Source() : data(2 * 20 * 64) {
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint16_t>(i + 1);
    map = make_tensor_map<Float16>({data.data(), {64, 20, 2, 1, 1}, {1, 64, 20 * 64, 64, 64}}, 16);
  }
};

TEST(HopperPrimitivesTest, CopiesAreSwizzledAndEndWhereTheTensorDoes) {
  const Source source;
  int wrong = 0;
  with_copies_early_and_late([&] {
    if (thread_index() == 0) {
      initialize(tile().barrier, 1);
      make_barriers_visible();
    }
    block_barrier();
    if (thread_index() == 0) {
      arrive_and_expect(tile().barrier, 16 * 128);
      copy_tile(tile().matrix, source.map, {0, 10, 1, 0, 0}, tile().barrier);
    }
    wait(tile().barrier, 0);
    for (int r = 0; r < 16; ++r) {
      for (int c = 0; c < 64; ++c) {
        uint16_t x;
        std::memcpy(&x, tile().matrix + r * 128 + (c / 8 ^ r % 8) * 16 + c % 8 * 2, 2);
        wrong += x != (r < 10 ? source.data[(20 + 10 + r) * 64 + c] : 0);
      }
    }
  });
  EXPECT_EQ(wrong, 0);
}

// Two copies for one barrier.
TEST(HopperPrimitivesTest, BytesAreCopiedAsTheyAre) {
  alignas(16) uint16_t source[32];
  for (int i = 0; i < 32; ++i) source[i] = static_cast<uint16_t>(i + 1);
  int wrong = 0;
  with_copies_early_and_late([&] {
    if (thread_index() == 0) {
      initialize(tile().barrier, 2);
      for (const int half : {0, 1}) {
        arrive_and_expect(tile().barrier, 32);
        copy_bytes(tile().matrix + 64 * half, source + 16 * half, 32, tile().barrier);
      }
    }
    block_barrier();
    wait(tile().barrier, 0);
    for (const int half : {0, 1}) {
      wrong += std::memcmp(tile().matrix + 64 * half, source + 16 * half, 32) != 0;
    }
    wrong += tile().matrix[32] != 0xff;
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(has(error_of<32>([&] { copy_bytes(tile().matrix, source + 1, 32, tile().barrier); },
                               sizeof(Tile)),
                  {"copy_bytes (", "not a multiple of 16"}));
}

// Without a wait there is nothing to be seen yet.
TEST(HopperPrimitivesTest, CopiesAreLate) {
  const Source source;
  run_threads<32>(
      [&] {
        if (thread_index() > 0) return;
        initialize(tile().barrier, 1);
        arrive_and_expect(tile().barrier, 16 * 128);
        copy_tile(tile().matrix, source.map, {0, 0, 0, 0, 0}, tile().barrier);
        EXPECT_EQ(tile().matrix[0], 0xff);
        wait(tile().barrier, 0);
        EXPECT_NE(tile().matrix[0], 0xff);
      },
      sizeof(Tile));
}

// Two warps take turns; each waits for the phase that the other has ended.
TEST(HopperPrimitivesTest, BarriersHavePhases) {
  in_some_orders([] {
    std::vector<int> turns;
    run_threads<64>(
        [&] {
          auto* const barriers = reinterpret_cast<SharedBarrier*>(shared_memory());
          const int own = warp_index();
          if (thread_index() == 0) {
            initialize(barriers[0], 32);
            initialize(barriers[1], 32);
          }
          block_barrier();
          for (int round = 0; round < 5; ++round) {
            // Warp 0 waits for warp 1's round before, the first time for none: parity 1.
            wait(barriers[1 - own], (round + 1 - own) % 2);
            if (lane_index() == 0) turns.push_back(own);
            arrive(barriers[own]);
          }
        },
        2 * sizeof(SharedBarrier));
    EXPECT_EQ(turns, (std::vector<int>{0, 1, 0, 1, 0, 1, 0, 1, 0, 1}));
  });
}

TEST(HopperPrimitivesTest, NamedBarriersCountArrivals) {
  in_some_orders([] {
    int wrong = 0;
    run_threads<96>(
        [&] {
          auto* const x = reinterpret_cast<int*>(shared_memory());
          if (warp_index() == 0) {
            if (lane_index() == 31) *x = 7;
            return arrive_at(3, 64);
          }
          if (warp_index() == 2) return;
          meet_at(3, 64);
          wrong += *x != 7;
        },
        sizeof(int));
    EXPECT_EQ(wrong, 0);
  });
}

// What a warpgroup does with one product of shared operands.
std::string error_of_product(const std::function<void(float (&c)[64], MatrixDescriptor)>& body) {
  return error_of<128>(
      [&] {
        if (thread_index() == 0) write_matrix(tile().matrix, kRows);
        block_barrier();
        float c[64] = {};
        body(c, describe_matrix(shared_address(tile().matrix), 0));
      },
      sizeof(Tile));
}

TEST(HopperPrimitivesTest, MistakesWithProductsAreNoticed) {
  EXPECT_TRUE(has(error_of_product([](float (&c)[64], MatrixDescriptor x) {
                    multiply_add<Float16>(c, x, x, false);
                  }),
                  {"multiply_add (", "begin_products() is missing"}));
  EXPECT_TRUE(has(error_of_product([](float (&c)[64], MatrixDescriptor x) {
                    begin_products();
                    multiply_add<Float16>(c, x, x + thread_index() / 64 * 16, false);
                  }),
                  {"disagree about the product"}));
  EXPECT_TRUE(has(error_of_product([](float (&c)[64], MatrixDescriptor x) {
                    begin_products();
                    multiply_add<Float16>(c, x, x, false);
                    commit_products();
                    c[5] += 1;
                    c[6] = 1;
                    wait_for_products<0>(c);
                  }),
                  {"accumulators changed before"}));
  EXPECT_TRUE(has(error_of_product([](float (&c)[64], MatrixDescriptor x) {
                    begin_products();
                    multiply_add<Float16>(c, x, x, false);
                    commit_products();
                    wait_for_products<1>(c);
                  }),
                  {"not among those waited for"}));
  EXPECT_TRUE(has(error_of_product([](float (&c)[64], MatrixDescriptor x) {
                    uint32_t a[4] = {};
                    begin_products();
                    multiply_add<Float16>(c, a, x, false);
                    commit_products();
                    a[2] = 1;
                    wait_for_products<0>(c);
                  }),
                  {"left operand's registers changed"}));
  EXPECT_TRUE(has(error_of_product([](float (&c)[64], MatrixDescriptor x) {
                    begin_products();
                    multiply_add<Float16>(c, x, MatrixDescriptor{x.bits ^ uint64_t{3} << 62},
                                          false);
                  }),
                  {"not described as swizzled"}));
}

TEST(HopperPrimitivesTest, MistakesWithBarriersAreNoticed) {
  const auto barrier = []() -> SharedBarrier& {
    return *reinterpret_cast<SharedBarrier*>(shared_memory());
  };
  EXPECT_TRUE(has(error_of<32>([&] { arrive(barrier()); }, 16), {"was not initialised"}));
  EXPECT_TRUE(has(error_of<32>(
                      [&] {
                        if (thread_index() == 0) initialize(barrier(), 33);
                        warp_barrier();
                        arrive(barrier());
                        wait(barrier(), 0);
                      },
                      16),
                  {"no thread can go on", "threads 0 to 31: wait at wait ("}));
  EXPECT_TRUE(has(error_of<32>(
                      [&] {
                        if (thread_index() > 0) return;
                        initialize(barrier(), 2);
                        arrive_and_expect(barrier(), 128);
                        arrive(barrier());
                        arrive(barrier());
                      },
                      16),
                  {"more arrivals than the barrier counts"}));
  EXPECT_TRUE(has(error_of<64>([&] { meet_at(1, thread_index() < 32 ? 64 : 96); }),
                  {"another number of threads"}));
  EXPECT_TRUE(has(error_of<32>([&] { meet_at(16, 32); }), {"named barriers 1 to 15"}));
}

TEST(HopperPrimitivesTest, TensorMapsRefuseWhatTheDriverRefuses) {
  alignas(16) static uint16_t data[1024];
  TensorLayout good{data, {64, 4, 2, 1, 1}, {1, 64, 256, 64, 64}};
  EXPECT_NO_THROW(make_tensor_map<Float16>(good, 8));
  const auto refuses = [&](auto&& edit) {
    TensorLayout layout = good;
    edit(layout);
    EXPECT_THROW(make_tensor_map<Float16>(layout, 8), std::runtime_error);
  };
  refuses([](TensorLayout& x) { x.data = data + 1; });
  refuses([](TensorLayout& x) { x.sizes[4] = 0; });
  refuses([](TensorLayout& x) { x.strides[1] = 65; });
  refuses([](TensorLayout& x) { x.strides[2] = 0; });
  refuses([](TensorLayout& x) { x.strides[2] = int64_t{1} << 39; });
  EXPECT_THROW(make_tensor_map<Float16>(good, 257), std::runtime_error);
}

}  // namespace
}  // namespace torch_ext::cuda::test
