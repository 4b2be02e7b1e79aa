// The memory of one tile of queries of tangent_sweep.h.
#pragma once

#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/row_statistics.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Tiles of scores (keys, width).
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

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
