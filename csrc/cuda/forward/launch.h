// Which kernel the forward of one dtype takes, and its launch.
#pragma once

#include "cuda/dtypes.h"
#include "cuda/forward/kernel.h"
#include "cuda/forward/merge.h"
#include "cuda/primitives/launch.h"

namespace torch_ext::cuda {

// Few queries leave most processors without a task: their keys are split, into at most 64 parts of
// at least 256 keys. Decided by the sizes of one head alone, as the order of sums must be.
constexpr int64_t kSplitQueries = 64, kSplitKeys = 256, kMaxSplits = 64;

TORCH_EXT_INLINE int64_t head_stride(const ForwardProblem& p) {
  return p.query.leading_strides[p.leading_dims - 1];
}
TORCH_EXT_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Few queries of several heads that read the same keys are rows of one task, so that the keys are
// read once: as long as all rows are equally far apart in memory.
TORCH_EXT_INLINE int64_t heads_together(const ForwardProblem& p) {
  const int64_t n = p.query_length;
  if (2 * n > kSplitQueries || n == 0) return 1;
  return n == 1 || head_stride(p) == n * p.query.row_stride ? p.group : 1;
}

template <class E>
int64_t split_tiles(const ForwardProblem& p) {
  const int64_t tiles = divide_up(p.key_length, kTile<E>);
  if (p.query_length > kSplitQueries) return tiles;
  const int64_t least = kSplitKeys / kTile<E>, wanted = divide_up(tiles, kMaxSplits);
  return wanted > least ? wanted : least;
}

template <class E>
ForwardParameters forward_parameters(const ForwardProblem& p) {
  ForwardParameters x{};
  x.problem = p;
  x.has_options = has_score_options(p);
  x.heads = heads_together(p);
  if (p.query_length == 1) x.problem.query.row_stride = head_stride(p);
  x.split_tiles = split_tiles<E>(p);
  x.splits = divide_up(divide_up(p.key_length, kTile<E>), x.split_tiles > 0 ? x.split_tiles : 1);
  if (x.splits < 1) x.splits = 1;
  return x;
}

template <class E>
int64_t forward_workspace(const ForwardProblem& p) {
  const ForwardParameters x = forward_parameters<E>(p);
  if (x.splits == 1) return 0;
  return static_cast<int64_t>(sizeof(AccumulateOf<E>)) * p.query_heads() * x.splits *
         SplitResults<AccumulateOf<E>>::size(p);
}

template <class E, int kWarps, int kSlice>
void launch_forward_kernel(ForwardParameters x, const Launch& on) {
  using Kernel = ForwardKernel<E, kWarps, kSlice>;
  using Task = typename Kernel::Task;
  x.tiles = divide_up(x.rows(), Task::kRows);
  x.slices = divide_up(x.problem.value_head_size, kSlice);
  if (x.slices < 1) x.slices = 1;
  const int64_t own_chunks = chunks_of<E>(x.problem.head_size);
  x.keeps_own = Task::Chunks::shared_bytes(own_chunks, true) <= shared_memory_limit(on.stream);
  launch<Kernel>(on.stream, x.tasks(), Task::Chunks::shared_bytes(own_chunks, x.keeps_own), x);
}

template <class E>
void forward(const ForwardProblem& p, const Launch& on) {
  constexpr int kSlice = sizeof(E) == 8 ? 64 : 128;  // what fits in registers
  ForwardParameters x = forward_parameters<E>(p);
  x.workspace = on.workspace;
  // More warps share what a block reads, where there are queries for them. Without the matrix units
  // it is the arithmetic that takes time.
  if constexpr (kByMatrixUnit<E>) {
    if (p.query_length > kSplitQueries)
      launch_forward_kernel<E, 8, kSlice>(x, on);
    else
      launch_forward_kernel<E, 4, kSlice>(x, on);
  } else {
    launch_forward_kernel<E, 4, kSlice>(x, on);
  }
  if (x.splits > 1) launch<MergeKernel<E>>(on.stream, MergeKernel<E>::blocks(x), 0, x);
}

}  // namespace torch_ext::cuda
