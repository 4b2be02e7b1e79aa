// Which weights dropout keeps, as a matrix: for tests and the composites of higher derivatives.
#pragma once

#include "attention/philox.h"
#include "cuda/operators.h"
#include "cuda/primitives/launch.h"

namespace torch_ext::cuda {

// A task is four neighbouring keys of one query: the numbers of one counter.
template <class Kept>
struct DropoutMaskKernel {
  static constexpr const char* kName = "dropout_mask";
  static constexpr int kThreads = 256;
  static constexpr int kBlocksPerProcessor = 4;

  struct Parameters {
    DropoutMaskProblem problem;
    uint32_t threshold;
    int64_t groups, tasks;  // of a row, and of all
  };

  static TORCH_EXT_DEVICE void run(const Parameters& p) {
    const int64_t step = block_count() * kThreads;
    for (int64_t task = block_index() * kThreads + thread_index(); task < p.tasks; task += step) {
      run_task(p, task / p.groups, task % p.groups);
    }
  }

 private:
  static TORCH_EXT_DEVICE void run_task(const Parameters& p, int64_t row, int64_t group) {
    const DropoutMaskProblem& mask = p.problem;
    const int64_t query = row % mask.queries, head = row / mask.queries % mask.heads;
    const uint64_t seed = static_cast<uint64_t>(mask.seeds[row / mask.queries / mask.heads]);
    const PhiloxWords words =
        philox(dropout_counter(head, query, group), static_cast<uint32_t>(seed),
               static_cast<uint32_t>(seed >> 32));
    Kept* kept = static_cast<Kept*>(mask.kept) + row * mask.keys;
    TORCH_EXT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t key = 4 * group + i;
      if (key < mask.keys) kept[key] = words.word[i] >= p.threshold;
    }
  }
};

template <class Kept>
void dropout_mask(const DropoutMaskProblem& problem, const Stream& stream) {
  using Kernel = DropoutMaskKernel<Kept>;
  const int64_t groups = (problem.keys + 3) / 4;
  const int64_t tasks = problem.samples * problem.heads * problem.queries * groups;
  const int64_t blocks = (tasks + Kernel::kThreads - 1) / Kernel::kThreads;
  launch<Kernel>(stream, blocks, 0, {problem, dropout_threshold(problem.dropout_p), groups, tasks});
}

}  // namespace torch_ext::cuda
