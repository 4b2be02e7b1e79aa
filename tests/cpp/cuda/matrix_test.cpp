// Matrix instructions on the host: the layouts are stated here as the PTX document does, element by
// element.

#include "cuda/primitives/matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "host_threads.h"

namespace torch_ext::cuda::test {
namespace {

uint16_t half_of(uint32_t x, int half) { return static_cast<uint16_t>(x >> 16 * half); }

// ---- ldmatrix
// ------------------------------------------------------------------------------------

// Rows lie at scattered places, each in a place of its own: element (r, c) of matrix m is
// 64 m + 8 r + c.
void store_scattered_matrices() {
  auto* shared = reinterpret_cast<uint16_t*>(shared_memory());
  const int row = lane_index() * 11 % 32;
  for (int c = 0; c < 8; ++c) shared[8 * row + c] = static_cast<uint16_t>(8 * lane_index() + c);
  warp_barrier();
}
const void* scattered_row() { return shared_memory() + 16 * (lane_index() * 11 % 32); }

// "Each thread loads a fragment of a row": thread T0 … T3 hold row 0, T4 … T7 row 1, two elements
// each.
TEST(LoadMatrices, GivesALaneTwoNeighboursOfARow) {
  in_some_orders([] {
    run_threads<32>(
        [] {
          store_scattered_matrices();
          uint32_t x[4];
          load_matrices(x, scattered_row());
          for (int m = 0; m < 4; ++m) {
            const int row = lane_index() / 4, column = lane_index() % 4 * 2;
            EXPECT_EQ(half_of(x[m], 0), 64 * m + 8 * row + column);
            EXPECT_EQ(half_of(x[m], 1), 64 * m + 8 * row + column + 1);
          }
        },
        512);
  });
}

TEST(LoadMatrices, TransposedGivesALaneTwoNeighboursOfAColumn) {
  in_some_orders([] {
    run_threads<32>(
        [] {
          store_scattered_matrices();
          uint32_t x[4];
          load_matrices_transposed(x, scattered_row());
          for (int m = 0; m < 4; ++m) {
            const int column = lane_index() / 4, row = lane_index() % 4 * 2;
            EXPECT_EQ(half_of(x[m], 0), 64 * m + 8 * row + column);
            EXPECT_EQ(half_of(x[m], 1), 64 * m + 8 * (row + 1) + column);
          }
        },
        512);
  });
}

// ---- mma.m16n8k16
// --------------------------------------------------------------------------------

// The document numbers a lane's elements a0 … a7, b0 … b3, c0 … c3 and gives the row and column of
// each from groupID = lane / 4 and threadID_in_group = lane % 4.
struct Place {
  int row, column;
};
Place place_of_a(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {(0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8,
          i < 4 ? thread * 2 + (i & 1) : thread * 2 + (i & 1) + 8};
}
Place place_of_b(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {i < 2 ? thread * 2 + (i & 1) : thread * 2 + (i & 1) + 8, group};
}
Place place_of_c(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {i < 2 ? group : group + 8, thread * 2 + (i & 1)};
}

struct Product {
  float a[16][16] = {}, b[16][8] = {}, c[16][8] = {};
};

// c += a b as one warp does it.
template <class E>
Product multiplied(const Product& in) {
  Product out = in;
  run_threads<32>([&] {
    const auto element = [](const auto& matrix, Place p) {
      return uint32_t{from_float<E>(matrix[p.row][p.column]).bits};
    };
    uint32_t a[4] = {}, b[2] = {};
    float c[4];
    for (int i = 0; i < 8; ++i)
      a[i / 2] |= element(in.a, place_of_a(lane_index(), i)) << 16 * (i % 2);
    for (int i = 0; i < 4; ++i)
      b[i / 2] |= element(in.b, place_of_b(lane_index(), i)) << 16 * (i % 2);
    for (int i = 0; i < 4; ++i) {
      const Place p = place_of_c(lane_index(), i);
      c[i] = in.c[p.row][p.column];
    }
    multiply_add_16x8x16<E>(c, a, b[0], b[1]);
    for (int i = 0; i < 4; ++i) {
      const Place p = place_of_c(lane_index(), i);
      out.c[p.row][p.column] = c[i];
    }
  });
  return out;
}

template <class E>
class MultiplyAdd : public testing::Test {};
using Elements16 = testing::Types<BFloat16, Float16>;
TYPED_TEST_SUITE(MultiplyAdd, Elements16);

// Small integers, whose products and sums are exact in any order.
TYPED_TEST(MultiplyAdd, AddsTheProduct) {
  Product in;
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) in.a[i][k] = static_cast<float>((i * 31 + k * 17) % 23 - 11);
    for (int j = 0; j < 8; ++j) in.b[i][j] = static_cast<float>((i * 13 + j * 29) % 19 - 9);
    for (int j = 0; j < 8; ++j) in.c[i][j] = static_cast<float>(100 * i + j);
  }
  in_some_orders([&] {
    const Product out = multiplied<TypeParam>(in);
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        float expected = in.c[i][j];
        for (int k = 0; k < 16; ++k) expected += in.a[i][k] * in.b[k][j];
        EXPECT_EQ(out.c[i][j], expected) << i << ", " << j;
      }
    }
  });
}

TYPED_TEST(MultiplyAdd, AccumulatesInFloat) {
  Product in;
  in.a[0][0] = in.b[0][0] = 1 + 0x1p-7f;  // its square needs 14 bits
  in.c[0][0] = 64;
  EXPECT_EQ(multiplied<TypeParam>(in).c[0][0], 64 + (1 + 0x1p-7f) * (1 + 0x1p-7f));
}

TYPED_TEST(MultiplyAdd, InfinityTimesZeroIsNaN) {
  Product in;
  in.a[3][5] = std::numeric_limits<float>::infinity();
  in.b[5][2] = 1;
  const Product out = multiplied<TypeParam>(in);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      if (i != 3) {
        EXPECT_EQ(out.c[i][j], 0);
      } else if (j == 2) {
        EXPECT_EQ(out.c[i][j], std::numeric_limits<float>::infinity());
      } else {
        EXPECT_TRUE(std::isnan(out.c[i][j]));
      }
    }
  }
}

}  // namespace
}  // namespace torch_ext::cuda::test
