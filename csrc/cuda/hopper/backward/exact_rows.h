// A row of the gradients by one warp, from visible entries only (exact_row.h).
#pragma once

#include "cuda/hopper/backward/tiles.h"
#include "cuda/hopper/exact_row.h"
#include "cuda/hopper/rows.h"

namespace torch_ext::cuda::hopper {

// Row i of the own side; query heads head … head + sharers - 1 read it.
template <class E, class Tiles>
TORCH_EXT_DEVICE void store_exact_gradients(const BackwardParameters& p, int head, int i) {
  constexpr int kColumns = Tiles::kHeadSize / kWarpSize;
  const BackwardProblem& problem = p.problem;
  const Side own = Tiles::kOwnsKeys ? key_side(problem) : query_side(problem);
  const Side other = Tiles::kOwnsKeys ? query_side(problem) : key_side(problem);
  const auto row_of = [&](const Operand& operand, const Side& side, int h, int64_t row) {
    return head_data<E>(problem, operand, h, side.group) + row * operand.row_stride;
  };
  float own_x[kColumns], own_y[kColumns], x[kColumns], y[kColumns], dx[kColumns] = {},
                                                                    dy[kColumns] = {};
  read_row(own_x, row_of(*own.x, own, head, i));
  read_row(own_y, row_of(*own.y, own, head, i));

  const Range seen = p.visibility.to_any(i, i);
  const int end = head + (Tiles::kOwnsKeys ? static_cast<int>(problem.group) : 1);
  for (int h = head; h < end; ++h) {
    const auto number = [&](const Operand& operand, int64_t row) {
      return head_data<float>(problem, operand, h, 1)[row * operand.row_stride];
    };
    for (int j = seen.begin; j < seen.end; ++j) {
      if (j % kLookInterval == 0 && (!Tiles::kHasDx || is_lost(dx)) &&
          (!Tiles::kHasDy || is_lost(dy))) {
        break;
      }
      const int row = Tiles::kOwnsKeys ? j : i;
      const float lse = number(problem.logsumexp, row);
      if (lse == kNoScore) continue;
      read_row(x, row_of(*other.x, other, h, j));
      read_row(y, row_of(*other.y, other, h, j));
      const float difference = std::fma(row_product(own_x, x), p.scale, -lse);
      const float weight =
          exp2_fast((difference - number(problem.logsumexp_residual, row)) * kLog2E);
      const float delta = p.statistics_of(h)[row / 2].delta.of[row % 2];
      if (Tiles::kHasDx) add_row(dx, weight * (row_product(own_y, y) - delta), x);
      if (Tiles::kHasDy) add_row(dy, weight, y);
    }
  }
  if (Tiles::kHasDx && *own.dx) write_row(row_of(*own.dx, own, head, i), dx, p.scale);
  if (Tiles::kHasDy && *own.dy) write_row(row_of(*own.dy, own, head, i), dy, 1);
}

}  // namespace torch_ext::cuda::hopper
