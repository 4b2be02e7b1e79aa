// The memory of one cell of backward_plan.h, for the backward and for the second order.
#pragma once

#include "cpu/kernels/backward_plan.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T, class P>
struct GradientScratch {
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);

  int64_t width;              // queries of a tile, in whole vectors
  T *q, *q_transposed;        // (width, head_columns), (D, width)
  T *dO, *dO_transposed;      // (width, value_columns), (E, width)
  T *lse, *residual, *delta;  // (width)
  T *k, *v;     // (key chunk, …_columns), where they cannot be read in place: converted once a cell
  T* p;         // (keys, width): s, then the weights that multiply do
  T* ds;        // (keys, width): dp, then the gradient of the scores
  T* ds0;       // (keys, width): the gradient of c q k; ds itself unless softcap lies between
  T* additive;  // (keys, width)
  T* z;         // (keys, width), with dropout
  T* spare;     // for any one tile
  T* dq;        // (width, head_columns), of one tile of queries
  T *dk, *dv;   // (key chunk, head_columns), (key chunk, value_columns)
  // The second order alone.
  T *q_dot, *q_dot_transposed;  // as q
  T *k_dot, *v_dot;             // as k and v
  T *center, *mu, *epsilon;     // (width)
  T* s_dot;                     // (keys, width): q' k^T + q k'^T, then the factor of k' and q'
  T *dp_dot, *b_dot;            // (keys, width)
  int64_t bytes;

  TORCH_EXT_INLINE GradientScratch(const P& problem, const BackwardPlan<T>& plan, void* memory) {
    Scratch scratch(memory);
    width = tile_width<T>(problem);
    const int64_t tile = smaller(problem.key_length, kTileKeys) * width;
    const int64_t chunk = smaller(problem.key_length, plan.keys.size);
    q = scratch.take<T>(width * plan.head_columns);
    q_transposed = scratch.take<T>(width * problem.head_size);
    dO = scratch.take<T>(width * plan.value_columns);
    dO_transposed = scratch.take<T>(width * problem.value_head_size);
    lse = scratch.take<T>(width);
    residual = scratch.take<T>(width);
    delta = scratch.take<T>(width);
    k = scratch.take<T>(chunk * plan.head_columns);
    v = scratch.take<T>(chunk * plan.value_columns);
    p = scratch.take<T>(tile);
    ds = scratch.take<T>(tile);
    ds0 = problem.softcap > 0 ? scratch.take<T>(tile) : ds;
    additive = scratch.take<T>(tile);
    z = scratch.take<T>(problem.dropout_p > 0 ? tile : 0);
    spare = scratch.take<T>(larger(kTileKeys, width) *
                            larger(width, larger(plan.head_columns, plan.value_columns)));
    dq = scratch.take<T>(width * plan.head_columns);
    dk = scratch.take<T>(chunk * plan.head_columns);
    dv = scratch.take<T>(chunk * plan.value_columns);
    if constexpr (kSecondOrder) {
      q_dot = scratch.take<T>(width * plan.head_columns);
      q_dot_transposed = scratch.take<T>(width * problem.head_size);
      k_dot = scratch.take<T>(chunk * plan.head_columns);
      v_dot = scratch.take<T>(chunk * plan.value_columns);
      center = scratch.take<T>(width);
      mu = scratch.take<T>(width);
      epsilon = scratch.take<T>(width);
      s_dot = scratch.take<T>(tile);
      dp_dot = scratch.take<T>(tile);
      b_dot = scratch.take<T>(tile);
    }
    bytes = scratch.used();
  }
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
