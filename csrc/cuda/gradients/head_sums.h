// The gradients of slopes and sinks: sums over the rows of all heads that share one.
//   dslope = -sum ds |distance|
//   dsink  = -sum p_sink delta                       p_sink = exp((sink - lse) - residual)
//   dsink  =  sum p_sink (-(sink' - mean) delta - epsilon)           in the second order
//
// Task: one slope or sink, by a block. Threads add rows in steps of the block, then the sums of
// threads are added in their order.
#pragma once

#include "cuda/gradients/rows.h"
#include "cuda/gradients/shared_heads.h"
#include "cuda/gradients/tile.h"

namespace torch_ext::cuda {

enum class HeadSum { kSlopes, kSink, kSinkSecond };

template <class T, HeadSum kSum>
struct HeadSumsKernel {
  using Parameters = GradientParameters;
  static constexpr const char* kName = "attention, gradients of slopes and sinks";
  static constexpr int kThreads = 256, kBlocksPerProcessor = 2;
  static constexpr int64_t kSharedBytes = kThreads * sizeof(T);

  static TORCH_EXT_INLINE const Operand& result(const Parameters& x) {
    return kSum == HeadSum::kSlopes ? x.problem.grad_slopes : x.problem.grad_sink;
  }
  static TORCH_EXT_INLINE int64_t tasks(const Parameters& x) {
    return SharedHeads(x.problem, result(x)).elements();
  }

  static TORCH_EXT_DEVICE void run(const Parameters& x) {
    for (int64_t element = block_index(); element < tasks(x); element += block_count())
      add_up(x, element);
  }

 private:
  static TORCH_EXT_DEVICE void add_up(const Parameters& x, int64_t element) {
    const Problem& p = x.problem;
    const SharedHeads heads(p, result(x));
    T sum = 0;
    for (int64_t n = 0; n < heads.sharers(); ++n) {
      const int64_t head = heads.head(element, n);
      for (int64_t row = thread_index(); row < p.query_length; row += kThreads)
        sum += of_row(x, head, row);
    }
    T* sums = reinterpret_cast<T*>(shared_memory());
    block_barrier();
    sums[thread_index()] = sum;
    block_barrier();
    if (thread_index() > 0) return;
    T total = 0;
    for (int thread = 0; thread < kThreads; ++thread) total += sums[thread];
    const int64_t head = heads.head(element, 0);
    static_cast<T*>(result(x).data)[head_offset(p, result(x), head)] = total;
  }

  static TORCH_EXT_DEVICE T of_row(const Parameters& x, int64_t head, int64_t row) {
    const SecondOrderProblem& p = x.problem;
    if constexpr (kSum == HeadSum::kSlopes) {
      return -static_cast<const T*>(x.slope_sums)[head * p.query_length + row];
    } else {
      constexpr bool kSecond = kSum == HeadSum::kSinkSecond;
      const RowNumbers<T> numbers =
          RowReader<T>(p, x.row_arrays<T>(), head).read(row, kSecond ? 4 : 1);
      const T weight = sink_weight(p, head, numbers);
      if (weight == 0) return 0;
      if constexpr (!kSecond) return -weight * numbers.delta;
      const T apart = (head_number<T>(p, p.direction.sink, head) - numbers.center) - numbers.mu;
      return weight * (-apart * numbers.delta - numbers.epsilon);
    }
  }
};

}  // namespace torch_ext::cuda
