// The gradient of the bias: ds, summed over everything that shares an element of it.
//
// Task: one tile of the bias. It adds up, in registers and in their order, the tiles of all query
// heads that read it and, where the bias is broadcast along the queries or the keys, of all tiles
// in that direction. Scores are computed once more for it.
#pragma once

#include "cuda/gradients/shared_heads.h"
#include "cuda/gradients/task.h"

namespace torch_ext::cuda {

template <class E, bool kSecond>
class BiasTask : public GradientTask<E, Kind<Result::kBiasGradient, kSecond>> {
  using K = Kind<Result::kBiasGradient, kSecond>;
  using Base = GradientTask<E, K>;
  using Base::chunks_, Base::p_, Base::x_, Base::kOther;
  using typename Base::T;
  using typename Base::Tile;

 public:
  using Base::Base;
  using Base::kOwn, Base::kThreads;

  static TORCH_EXT_INLINE int64_t query_tiles(const GradientParameters& x) {
    return (x.problem.query_length + kOwn - 1) / kOwn;
  }
  static TORCH_EXT_INLINE int64_t key_tiles(const GradientParameters& x) {
    return (x.problem.key_length + kOther - 1) / kOther;
  }
  // Tiles of the bias itself.
  static TORCH_EXT_INLINE int64_t rows(const GradientParameters& x) {
    return x.problem.grad_bias.row_stride == 0 ? 1 : query_tiles(x);
  }
  static TORCH_EXT_INLINE int64_t columns(const GradientParameters& x) {
    return x.problem.grad_bias.col_stride == 0 ? 1 : key_tiles(x);
  }

  TORCH_EXT_DEVICE void run(int64_t index) {
    column_ = static_cast<int>(index % columns(x_));
    index /= columns(x_);
    row_ = index % rows(x_);
    const SharedHeads heads(p_, p_.grad_bias);
    const int64_t element = index / rows(x_);
    sum_.clear();
    const bool all_rows = p_.grad_bias.row_stride == 0;
    for (int64_t n = 0; n < heads.sharers(); ++n)
      for (int64_t row = all_rows ? 0 : row_; row < (all_rows ? query_tiles(x_) : row_ + 1); ++row)
        add_row(heads.head(element, n), row);
    store(heads.head(element, 0));
  }

 private:
  // One tile of queries of one head.
  TORCH_EXT_DEVICE void add_row(int64_t head, int64_t row) {
    typename Tile::Place place{};
    place.first_row = this->warp_row();
    place.query = row * kOwn;
    place.head = head;
    TileRange tiles = visible_key_tiles(p_, place.query, kOwn, kOther);
    if (p_.grad_bias.col_stride != 0) {
      if (column_ < tiles.begin || column_ >= tiles.end) return;
      tiles = {column_, column_ + 1};
    }
    block_barrier();
    if (thread_index() == 0) this->describe(head, 0, 0);
    block_barrier();
    this->read_own_rows(place);
    chunks_.start(place.query, {tiles.begin, tiles.end, 1});
    for (int tile = tiles.begin; tile < tiles.end; ++tile) {
      place.key = static_cast<int64_t>(tile) * kOther;
      typename Tile::Fragments x;
      VisibleBits visible;
      T sums[2][kRowSums];
      this->clear_sums(sums);
      this->multiply_tile(x);
      this->compute(place, false, x, visible, sums);
      TORCH_EXT_UNROLL
      for (int n = 0; n < kOther / 8; ++n) TORCH_EXT_UNROLL
      for (int c = 0; c < 4; ++c) sum_.x[n][c] += x.s.x[n][c];
    }
    chunks_.finish();
  }

  // Through shared memory: first what is broadcast is added up.
  TORCH_EXT_DEVICE void store(int64_t head) {
    const Operand& target = p_.grad_bias;
    T* tile = reinterpret_cast<T*>(chunks_.spare_memory());  // (kOwn, kOther)
    block_barrier();
    TORCH_EXT_UNROLL
    for (int n = 0; n < kOther / 8; ++n) TORCH_EXT_UNROLL
    for (int c = 0; c < 4; ++c)
      tile[(this->warp_row() + fragment_row(c / 2)) * kOther + score_column(n, c % 2)] =
          sum_.x[n][c];
    block_barrier();
    const int rows = target.row_stride == 0 ? 1 : kOwn,
              columns = target.col_stride == 0 ? 1 : kOther;
    T* out = static_cast<T*>(target.data) + head_offset(p_, target, head);
    for (int i = thread_index(); i < rows * columns; i += kThreads) {
      const int row = i / columns, column = i % columns;
      const int64_t query = row_ * kOwn + row;
      const int64_t key = static_cast<int64_t>(column_) * kOther + column;
      if (rows > 1 && query >= p_.query_length) continue;
      if (columns > 1 && key >= p_.key_length) continue;
      T sum = 0;
      for (int r = row; r < (rows == 1 ? kOwn : row + 1); ++r)
        for (int c = column; c < (columns == 1 ? kOther : column + 1); ++c)
          sum += tile[r * kOther + c];
      out[query * target.row_stride + key * target.col_stride] = sum;
    }
    block_barrier();
  }

  // Of the tile of the bias; 0 where it is broadcast.
  int64_t row_ = 0;
  int column_ = 0;
  Fragment<T, Base::kOther> sum_;
};

template <class E, bool kSecond>
struct BiasKernel {
  using Task = BiasTask<E, kSecond>;
  using Parameters = GradientParameters;
  static constexpr const char* kName = "attention, gradient of the bias";
  static constexpr int kThreads = Task::kThreads, kBlocksPerProcessor = 2;

  static TORCH_EXT_INLINE int64_t tasks(const Parameters& x) {
    return SharedHeads(x.problem, x.problem.grad_bias).elements() * Task::rows(x) *
           Task::columns(x);
  }
  static TORCH_EXT_DEVICE void run(const Parameters& x) {
    Task task(x, shared_memory());
    for (int64_t index = block_index(); index < tasks(x); index += block_count()) task.run(index);
  }
};

}  // namespace torch_ext::cuda
