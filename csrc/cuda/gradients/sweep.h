// The gradients of query, key and value, and the tangent of the output: a x + b x' summed over the
// other side, where a and b are terms of the scores (kinds.h, terms.h).
//
// Task: a tile of queries of one head (grad_query, output_tangent) or a tile of keys of one key
// head (grad_key, grad_value; over all query heads that read it), and a slice of the result's
// columns. It reads its own side once and the other side once a task; nothing is added up between
// tasks, so the order of sums is fixed.
#pragma once

#include "cuda/gradients/task.h"

namespace torch_ext::cuda {

template <class E, class K, int kSlice>
class SweepTask : public GradientTask<E, K> {
  using Base = GradientTask<E, K>;
  using Base::chunks_, Base::p_, Base::x_, Base::has_hidden_, Base::kOther;
  using typename Base::T;
  using typename Base::Tile;

 public:
  using Base::Base;
  using Base::kOwn, Base::kThreads;

  TORCH_EXT_DEVICE void run(int64_t index) {
    slice_ = static_cast<int>(index % x_.slices);
    index /= x_.slices;
    own_row_ = index % x_.tiles * kOwn;
    head_ = index / x_.tiles * (K::kOwnsKeys ? p_.group : 1);
    // 0 times what is hidden is NaN, where that is inf or NaN: then once more, without it.
    bool is_exact = false;
    TORCH_EXT_KEEP_LOOP
    for (bool again = true; again; is_exact = true) {
      attempt(is_exact);
      again = block_any(has_hidden_) && block_any(!all_finite(out_)) && !is_exact;
    }
    store();
  }

 private:
  TORCH_EXT_DEVICE void attempt(bool is_exact) {
    block_barrier();
    if (thread_index() == 0)
      this->describe(head_, slice_ * kSlice / kChunkColumns<E>, slice_chunks());
    block_barrier();
    const TileRange tiles = K::kOwnsKeys ? visible_query_tiles(p_, own_row_, kOwn, kOther)
                                         : visible_key_tiles(p_, own_row_, kOwn, kOther);
    const TileWalk walk{tiles.begin, tiles.end, K::kOwnsKeys ? static_cast<int>(p_.group) : 1};
    chunks_.start(own_row_, walk);
    out_.clear();
    has_hidden_ = false;
    this->clear_sums(sums_);
    typename Tile::Place place{};
    place.first_row = this->warp_row();
    place.head = head_;
    (K::kOwnsKeys ? place.key : place.query) = own_row_;
    if (!K::kOwnsKeys) this->read_own_rows(place);
    for (int head = 0; head < walk.heads; ++head)
      for (int tile = walk.begin; tile < walk.end; ++tile) {
        place.head = head_ + head;
        (K::kOwnsKeys ? place.query : place.key) = static_cast<int64_t>(tile) * kOther;
        visit(place, is_exact);
      }
    chunks_.finish();
  }

  TORCH_EXT_DEVICE void visit(const typename Tile::Place& place, bool is_exact) {
    typename Tile::Fragments x;
    VisibleBits visible;
    this->multiply_tile(x);
    this->compute(place, is_exact, x, visible, sums_);
    Weights<E, kOther> weights(x.s);
    for (int n = chunks_.task().factor_chunks; n > 0; --n) {
      const auto chunk = chunks_.next();
      if (K::kFactorDot >= 0 && chunk.place == 1 && chunk.index == 0)
        weights = Weights<E, kOther>(x.s_dot);
      if (is_exact)
        multiply_visible<E>(out_, weights, visible, chunk.other, chunk.index);
      else
        multiply<E>(out_, weights, chunk.other, chunk.index, chunk.columns);
    }
  }

  TORCH_EXT_DEVICE int64_t columns() const {
    return K::kOfValues ? p_.value_head_size : p_.head_size;
  }
  TORCH_EXT_DEVICE int slice_chunks() const {
    const int left = chunks_of<E>(columns() - slice_ * kSlice);
    return left < kSlice / kChunkColumns<E> ? left : kSlice / kChunkColumns<E>;
  }
  TORCH_EXT_DEVICE const Operand& result() const {
    switch (K::kResult) {
      case Result::kQueryGradient:
        return p_.grad_query;
      case Result::kKeyGradient:
        return p_.grad_key;
      case Result::kValueGradient:
        return p_.grad_value;
      default:
        return p_.output_tangent;
    }
  }

  TORCH_EXT_DEVICE void store() {
    const Operand& target = result();
    const T factor = K::kOfValues ? T(1) : static_cast<T>(p_.scale);
    const int64_t offset = target ? head_offset(p_, target, head_, K::kOwnsKeys ? p_.group : 1) : 0;
    const int64_t length = K::kOwnsKeys ? p_.key_length : p_.query_length;
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t row = own_row_ + this->warp_row() + fragment_row(half);
      if (K::kResult == Result::kQueryGradient && x_.slope_sums) {
        const T sum = quad_sum(sums_[half][0]);
        if (row < length && slice_ == 0 && lane_index() % 4 == 0)
          static_cast<T*>(x_.slope_sums)[head_ * length + row] = sum;
      }
      if (row >= length || !target) continue;
      E* out = static_cast<E*>(target.data) + offset + row * target.row_stride;
      TORCH_EXT_UNROLL
      for (int n = 0; n < kSlice / 8; ++n) TORCH_EXT_UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        const int64_t column = slice_ * kSlice + output_column<E>(n, pair);
        if (column < columns())
          out[column * target.col_stride] = from_float<E>(out_.x[n][2 * half + pair] * factor);
      }
    }
  }

  int64_t head_ = 0, own_row_ = 0;  // the first query head, the first row of the own side
  int slice_ = 0;
  Fragment<T, kSlice> out_;
  T sums_[2][kRowSums];
};

template <class E, class K, int kSlice>
struct SweepKernel {
  using Task = SweepTask<E, K, kSlice>;
  using Parameters = GradientParameters;
  static constexpr const char* kName = "attention gradient";
  static constexpr int kThreads = Task::kThreads, kBlocksPerProcessor = 2;

  static TORCH_EXT_INLINE int64_t tasks(const Parameters& x) {
    const SecondOrderProblem& p = x.problem;
    return (K::kOwnsKeys ? p.key_heads() : p.query_heads()) * x.tiles * x.slices;
  }
  static TORCH_EXT_DEVICE void run(const Parameters& x) {
    Task task(x, shared_memory());
    for (int64_t index = block_index(); index < tasks(x); index += block_count()) task.run(index);
  }
};

}  // namespace torch_ext::cuda
