// Completes what the cells of a wave left in partial buffers: adds the chunks in their order and
// writes the gradients.
#pragma once

#include "cpu/kernels/backward_plan.h"
#include "cpu/parallel.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// x(rows) = factor * (partial 0 + partial 1 + …), `step` elements apart, for one block of rows.
template <class T>
void reduce_rows(const T* partial, int64_t step, int64_t count, int64_t rows, int64_t columns,
                 int64_t cols, T factor, const Operand& x, int64_t offset, int64_t row, T* sum) {
  partial += row * columns;
  for (int64_t i = 0; i < rows * columns; ++i) sum[i] = partial[i];
  for (int64_t chunk = 1; chunk < count; ++chunk) {
    partial += step;
    for (int64_t i = 0; i < rows * columns; ++i) sum[i] += partial[i];
  }
  write_rows<T>(sum, columns, rows, cols, factor, x, offset, row);
}

template <class T>
void reduce_query_gradients(const BackwardProblem& p, const BackwardPlan<T>& plan,
                            BackwardPartials<T> partials, int64_t first, int64_t heads) {
  const int64_t block = plan.cut.tile_queries, tiles = divide_up(p.query_length, block);
  const int64_t bytes = block * plan.head_columns * static_cast<int64_t>(sizeof(T));
  parallel_tasks(heads * p.group * tiles, bytes, [&](int64_t task, void* scratch) {
    const int64_t row = task % tiles * block, in_wave = task / tiles / p.group;
    const int64_t in_group = task / tiles % p.group;
    const int64_t offset = head_offset(p, p.grad_query, (first + in_wave) * p.group + in_group);
    reduce_rows<T>(partials.dq(plan, p, in_wave, in_group, 0), p.query_length * plan.head_columns,
                   plan.keys.count, smaller(block, p.query_length - row), plan.head_columns,
                   p.head_size, static_cast<T>(p.scale), p.grad_query, offset, row,
                   static_cast<T*>(scratch));
  });
}

template <class T>
void reduce_key_gradients(const BackwardProblem& p, const BackwardPlan<T>& plan,
                          BackwardPartials<T> partials, int64_t first, int64_t heads) {
  const int64_t columns = larger(plan.head_columns, plan.value_columns);
  const int64_t block = plan.cut.tile_keys, tiles = divide_up(p.key_length, block);
  const int64_t bytes = block * columns * static_cast<int64_t>(sizeof(T));
  parallel_tasks(heads * tiles, bytes, [&](int64_t task, void* scratch) {
    const int64_t row = task % tiles * block, in_wave = task / tiles;
    const int64_t head = (first + in_wave) * p.group, rows = smaller(block, p.key_length - row);
    T* sum = static_cast<T*>(scratch);
    if (plan.dk_partial)
      reduce_rows<T>(partials.dk(plan, p, in_wave, 0), p.key_length * plan.head_columns,
                     plan.queries.count, rows, plan.head_columns, p.head_size,
                     static_cast<T>(p.scale), p.grad_key, head_offset(p, p.grad_key, head, p.group),
                     row, sum);
    if (plan.dv_partial)
      reduce_rows<T>(partials.dv(plan, p, in_wave, 0), p.key_length * plan.value_columns,
                     plan.queries.count, rows, plan.value_columns, p.value_head_size, T(1),
                     p.grad_value, head_offset(p, p.grad_value, head, p.group), row, sum);
  });
}

// Element by element over all heads and chunks of the wave, in their order: slices that several
// heads share add up in index order.
template <class T>
void reduce_bias_gradient(const BackwardProblem& p, const BackwardPlan<T>& plan,
                          BackwardPartials<T> partials, int64_t first, int64_t heads) {
  constexpr int64_t kBlockElements = 1024;
  const int64_t blocks = divide_up(plan.bias_slice, kBlockElements);
  parallel_tasks(blocks, 0, [&](int64_t block, void*) {
    const int64_t begin = block * kBlockElements,
                  count = smaller(kBlockElements, plan.bias_slice - begin);
    for (int64_t i = 0; i < heads * plan.bias_heads; ++i) {
      const int64_t in_wave = i / plan.bias_heads, in_group = i % plan.bias_heads;
      T* out = static_cast<T*>(p.grad_bias.data) + begin +
               head_offset(p, p.grad_bias, (first + in_wave) * p.group + in_group);
      for (int64_t chunk = 0; chunk < plan.bias_chunks(); ++chunk) {
        const T* in = partials.bias(plan, in_wave, in_group, chunk) + begin;
        for (int64_t e = 0; e < count; ++e) out[e] += in[e];
      }
    }
  });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
