// The memory of a task of the derivatives: of tangent_sweep.h, and of gradient_task.h, which holds
// that of a sweep where it keeps the tiles of whole rows.
#pragma once

#include "cpu/kernels/derivatives/backward_plan.h"
#include "cpu/kernels/derivatives/row_statistics.h"
#include "cpu/kernels/few_queries/few_queries.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Tiles of scores (keys, width) of tangent_sweep.h.
template <class T>
struct TangentTiles {
  T* p;              // s, then p
  T* s_dot;          // q' k^T + q k'^T, then p (s' - origin)
  T *dp, *dp_dot;    // of the second order
  T *u, *s0_dot;     // what softcap bends: tanh(c q k / softcap) and c (q' k^T + q k'^T)
  int64_t distance;  // to those of the next keys

  TORCH_EXT_INLINE TangentTiles tile(int64_t i) const {
    i *= distance;
    return {p + i, s_dot + i, dp + i, dp_dot + i, u + i, s0_dot + i, distance};
  }
};

// One tile of queries of tangent_sweep.h.
template <class T, class P>
struct TangentScratch {
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);

  int64_t width;             // queries of a tile, in whole vectors
  int64_t columns;           // E in whole vectors
  T *q, *q_dot;              // (D, width), transposed
  T* dO;                     // (E, width), transposed
  T *k, *k_dot, *v, *v_dot;  // (keys, …) where they cannot be read in place
  int64_t slots;             // of tiles: one, or one for each tile of keys where they are kept
  TangentTiles<T> kept;      // the first of them
  T *additive, *b_dot, *z;   // (keys, width)
  T* spare;                  // for a tile of scores or of v, or for score_tile
  T* o_dot;                  // (width, columns)
  T *lse, *residual;         // (width)
  MomentRows<T> moments;     // of the keys so far, in the end means
  T* origin;                 // (width): what is subtracted from s' where it multiplies v
  int64_t bytes;

  TORCH_EXT_INLINE TangentScratch(const P& problem, const Cut& cut, bool keeps, void* memory) {
    Scratch scratch(memory);
    width = cut.tile_width;
    columns = round_up(problem.value_head_size, Vec<T>::kSize);
    const int64_t keys = smaller(problem.key_length, cut.tile_keys), tile = keys * width;
    const int64_t head_columns = round_up(problem.head_size, Vec<T>::kSize);
    q = scratch.take<T>(problem.head_size * width);
    q_dot = scratch.take<T>(problem.head_size * width);
    k = scratch.take<T>(keys * head_columns);
    k_dot = scratch.take<T>(keys * head_columns);
    v = scratch.take<T>(keys * columns);
    v_dot = scratch.take<T>(keys * columns);
    slots = keeps ? larger(1, divide_up(problem.key_length, cut.tile_keys)) : 1;
    kept.distance = tile;
    kept.p = scratch.take<T>(slots * tile);
    kept.s_dot = scratch.take<T>(slots * tile);
    additive = scratch.take<T>(tile);
    b_dot = scratch.take<T>(tile);
    z = scratch.take<T>(problem.dropout_p > 0 ? tile : 0);
    spare = scratch.take<T>(
        larger(larger(keys, 1) * larger(width, columns), score_spare<T>(problem, keys)));
    o_dot = scratch.take<T>(width * columns);
    lse = scratch.take<T>(width);
    residual = scratch.take<T>(width);
    moments = MomentRows<T>(scratch, width);
    origin = scratch.take<T>(width);
    dO = scratch.take<T>(kSecondOrder ? problem.value_head_size * width : 0);
    kept.dp = scratch.take<T>(kSecondOrder ? slots * tile : 0);
    kept.dp_dot = scratch.take<T>(kSecondOrder ? slots * tile : 0);
    kept.u = scratch.take<T>(keeps && problem.softcap > 0 ? slots * tile : 0);
    kept.s0_dot = scratch.take<T>(keeps && problem.softcap > 0 ? slots * tile : 0);
    bytes = scratch.used();
  }
};

// One task of backward_plan.h, for the backward and for the second order.
template <class E, class P>
struct GradientScratch {
  using T = SumOf<E>;
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);

  int64_t width;          // queries of the widest tile, then of the one at hand, in whole vectors
  E *q, *q_transposed;    // (width, head_columns), (D, width)
  E *dO, *dO_transposed;  // (width, value_columns), (E, width)
  T *lse, *residual, *delta;  // (width)
  E *k, *v;     // (key chunk, …_columns), where they cannot be read in place: converted once a task
  E* k_right;   // (key chunk, head_columns): k as a right factor, where that is not k itself
  T* p;         // (keys, width): s, then the weights that multiply do
  T* ds;        // (keys, width): dp, then the gradient of the scores
  T* ds0;       // (keys, width): the gradient of c q k; ds itself unless softcap lies between
  T* additive;  // (keys, width)
  T* z;         // (keys, width), with dropout
  E* weights;   // (keys, width): one of these tiles as a left factor, where it is not read from it
  T* spare;     // for any one tile, or for score_tile
  E* spare_right;            // for any one right factor
  T* dq;                     // (width, head_columns), of one tile of queries
  T *dk, *dv;                // (key chunk, head_columns), (key chunk, value_columns)
  T *dk_before, *dv_before;  // of the row chunks before, where a task takes several
  bool* is_started;  // of each tile of keys, whether its dk and dv of this row chunk hold anything
  // The second order alone.
  E *q_dot, *q_dot_transposed;  // as q
  E *k_dot, *v_dot;             // as k and v
  T *center, *mu, *epsilon;     // (width)
  T* s_dot;                     // (keys, width): q' k^T + q k'^T, then the factor of k' and q'
  T *dp_dot, *b_dot;            // (keys, width)
  void* sweep = nullptr;        // of tangent_sweep.h, where it keeps the tiles of whole rows
  int64_t bytes;

  TORCH_EXT_INLINE GradientScratch(const P& problem, const BackwardPlan<T>& plan, void* memory) {
    Scratch scratch(memory);
    width = plan.cut.tile_width;
    const int64_t keys = plan.cut.tile_keys;
    const int64_t tile = smaller(problem.key_length, keys) * width + kRowTail;
    const int64_t chunk = smaller(problem.key_length, plan.keys.size);
    q = scratch.take<E>(elements<E>(width) * plan.head_columns);
    q_transposed = scratch.take<E>(elements<E>(problem.head_size) * width);
    dO = scratch.take<E>(elements<E>(width) * plan.value_columns);
    dO_transposed = scratch.take<E>(elements<E>(problem.value_head_size) * width);
    lse = scratch.take<T>(width);
    residual = scratch.take<T>(width);
    delta = scratch.take<T>(width);
    k = scratch.take<E>(chunk * elements<E>(plan.head_columns));
    v = scratch.take<E>(chunk * elements<E>(plan.value_columns));
    k_right = kTerms<E> > 1 ? scratch.take<E>(elements<E>(chunk) * plan.head_columns) : k;
    p = scratch.take<T>(tile);
    ds = scratch.take<T>(tile);
    ds0 = problem.softcap > 0 ? scratch.take<T>(tile) : ds;
    additive = scratch.take<T>(tile);
    z = scratch.take<T>(problem.dropout_p > 0 ? tile : 0);
    weights = scratch.take<E>(kTerms<E> > 1 ? tile : 0);
    spare = scratch.take<T>(larger(keys * width, score_spare<T>(problem, keys)));
    spare_right = scratch.take<E>(elements<E>(larger(keys, width)) *
                                  larger(plan.head_columns, plan.value_columns));
    dq = scratch.take<T>(width * plan.head_columns);
    dk = scratch.take<T>(chunk * plan.head_columns);
    dv = scratch.take<T>(chunk * plan.value_columns);
    dk_before = scratch.take<T>(plan.joins_rows ? chunk * plan.head_columns : 0);
    dv_before = scratch.take<T>(plan.joins_rows ? chunk * plan.value_columns : 0);
    is_started = scratch.take<bool>(divide_up(chunk, keys));
    if constexpr (kSecondOrder) {
      q_dot = scratch.take<E>(width * plan.head_columns);
      q_dot_transposed = scratch.take<E>(width * problem.head_size);
      k_dot = scratch.take<E>(chunk * plan.head_columns);
      v_dot = scratch.take<E>(chunk * plan.value_columns);
      center = scratch.take<T>(width);
      mu = scratch.take<T>(width);
      epsilon = scratch.take<T>(width);
      s_dot = scratch.take<T>(tile);
      dp_dot = scratch.take<T>(tile);
      b_dot = scratch.take<T>(tile);
      if (plan.keeps_rows)
        sweep = scratch.take<char>(TangentScratch<T, P>(problem, plan.cut, true, nullptr).bytes);
    }
    bytes = scratch.used();
  }
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
