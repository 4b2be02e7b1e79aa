// How the forward is cut into tasks, and where the parts of rows whose keys are split go.
#pragma once

#include "cuda/tile/element.h"

namespace torch_ext::cuda {

struct ForwardTaskIndex {
  int64_t head, tile, split;  // the first head
  int slice;
};

struct ForwardParameters {
  ForwardProblem problem;
  int64_t heads;        // whose rows are in one task
  int64_t tiles;        // of their rows
  int64_t slices;       // of o's columns
  int64_t splits;       // of the keys
  int64_t split_tiles;  // tiles of keys in one
  bool has_options;     // has_score_options
  bool keeps_own;       // whether q stays in shared memory (pipeline.h)
  void* workspace;      // SplitResults, where there are several splits

  TORCH_EXT_INLINE int64_t rows() const { return heads * problem.query_length; }
  TORCH_EXT_INLINE int64_t tasks() const {
    return problem.query_heads() / heads * tiles * splits * slices;
  }
  // The last tiles of queries first: under a causal mask they take longest.
  TORCH_EXT_INLINE ForwardTaskIndex task(int64_t index) const {
    const int slice = static_cast<int>(index % slices);
    index /= slices;
    const int64_t split = index % splits;
    index /= splits;
    return {index / tiles * heads, tiles - 1 - index % tiles, split, slice};
  }
};

// What a split of the keys contributes to the rows of one head: max (N), sum (N) of exp(s - max),
// and the sum (N, E) of exp(s - max) v.
template <class T>
struct SplitResults {
  T *max, *sum, *output;

  TORCH_EXT_INLINE SplitResults(const ForwardParameters& x, int64_t head, int64_t split) {
    const int64_t rows = x.problem.query_length;
    max = static_cast<T*>(x.workspace) + (head * x.splits + split) * size(x.problem);
    sum = max + rows;
    output = sum + rows;
  }
  // Numbers of one split of one head.
  static TORCH_EXT_INLINE int64_t size(const ForwardProblem& p) {
    return p.query_length * (2 + p.value_head_size);
  }
};

}  // namespace torch_ext::cuda
