// dk and dv of the keys of a task of gradient_task.h: summed in scratch over a row chunk, then over
// the row chunks of the task, and written where they belong.
#pragma once

#include "cpu/kernels/derivatives/derivative_scratch.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Rows count from the first key of the cell.
template <class E, class P>
class KeySums {
  using T = SumOf<E>;

 public:
  KeySums(const P& problem, const BackwardPlan<T>& plan, BackwardPartials<T> partials,
          GradientScratch<E, P>& scratch)
      : p_(problem), plan_(plan), partials_(partials), x_(scratch) {}

  // The next row chunk; nothing is summed yet.
  void start(const Cell& cell) {
    keys_ = cell.key_end - cell.key;
    for (int64_t i = 0; i < divide_up(keys_, plan_.cut.tile_keys); ++i) x_.is_started[i] = false;
  }

  T* dk(int64_t row) const { return x_.dk + row * plan_.head_columns; }
  T* dv(int64_t row) const { return x_.dv + row * plan_.value_columns; }
  // Whether the tile of keys from `row` on holds anything.
  bool is_started(int64_t row) const { return x_.is_started[row / plan_.cut.tile_keys]; }
  // Its first `rows` rows hold something from now on.
  void set_started(int64_t row, int64_t rows) const {
    if (is_started(row)) return;
    zero(row + rows, end_of_tile(row));
    x_.is_started[row / plan_.cut.tile_keys] = true;
  }

  // The row chunk is complete.
  void finish(const Cell& cell) {
    for (int64_t row = 0; row < keys_; row = end_of_tile(row))
      if (!is_started(row)) zero(row, end_of_tile(row));
    if (!p_.grad_output) fill_zero(x_.dv, keys_ * plan_.value_columns);
    if (plan_.joins_rows) {
      add_chunk(cell);
      if (!cell.is_last) return;
    }
    if (p_.grad_key)
      write(cell, x_.dk, plan_.head_columns, p_.head_size, static_cast<T>(p_.scale), p_.grad_key,
            plan_.dk_partial ? partials_.dk(plan_, p_, cell.in_wave, cell.row_chunk) : nullptr);
    if (p_.grad_value)
      write(cell, x_.dv, plan_.value_columns, p_.value_head_size, T(1), p_.grad_value,
            plan_.dv_partial ? partials_.dv(plan_, p_, cell.in_wave, cell.row_chunk) : nullptr);
  }

 private:
  int64_t end_of_tile(int64_t row) const { return smaller(row + plan_.cut.tile_keys, keys_); }

  void zero(int64_t begin, int64_t end) const {
    fill_zero(dk(begin), (end - begin) * plan_.head_columns);
    fill_zero(dv(begin), (end - begin) * plan_.value_columns);
  }

  // dk and dv += those of the chunks before. Unless this chunk is the last, the sums then change
  // places with dk_before and dv_before.
  void add_chunk(const Cell& cell) {
    if (!cell.is_first) {
      if (p_.grad_key) add(x_.dk_before, x_.dk, keys_ * plan_.head_columns);
      if (p_.grad_value) add(x_.dv_before, x_.dv, keys_ * plan_.value_columns);
    }
    if (cell.is_last) return;
    swap(x_.dk, x_.dk_before);
    swap(x_.dv, x_.dv_before);
  }
  // sum = before + sum; counts are whole vectors.
  static void add(const T* before, T* sum, int64_t count) {
    using V = Vec<T>;
    for (int64_t i = 0; i < count; i += V::kSize)
      (V::load(before + i) + V::load(sum + i)).store(sum + i);
  }
  static void swap(T*& a, T*& b) {
    T* const was = a;
    a = b;
    b = was;
  }

  void write(const Cell& cell, const T* sums, int64_t columns, int64_t cols, T factor,
             const Operand& out, T* partial) const {
    if (partial)
      __builtin_memcpy(partial + cell.key * columns, sums,
                       static_cast<size_t>(keys_ * columns) * sizeof(T));
    else
      write_rows<T>(sums, columns, keys_, cols, factor, out,
                    head_offset(p_, out, cell.head, p_.group), cell.key);
  }

  const P& p_;
  const BackwardPlan<T>& plan_;
  BackwardPartials<T> partials_;
  GradientScratch<E, P>& x_;
  int64_t keys_ = 0;
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
