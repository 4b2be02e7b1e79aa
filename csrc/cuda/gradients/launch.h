// Launches of the gradients' kernels for one dtype: what the backward, the tangent and the second
// order share.
#pragma once

#include "cuda/gradients/bias.h"
#include "cuda/gradients/head_sums.h"
#include "cuda/gradients/moments.h"
#include "cuda/gradients/sweep.h"
#include "cuda/operators.h"
#include "cuda/primitives/launch.h"

namespace torch_ext::cuda {

template <class E>
class GradientLauncher {
  using T = AccumulateOf<E>;
  // Columns of a result that one task holds in registers, beside two or four tiles of products.
  template <bool kSecond>
  static constexpr int kSlice = sizeof(E) < 8 ? 128 : 64 / (kSecond ? 2 : 1);

 public:
  // The row arrays, then the sums of slopes.
  static int64_t workspace(const BackwardProblem& p, bool is_second) {
    const int64_t numbers = (is_second ? 4 : 1) + (p.grad_slopes ? 1 : 0);
    return static_cast<int64_t>(sizeof(T)) * p.query_heads() * p.query_length * numbers;
  }

  GradientLauncher(const SecondOrderProblem& problem, bool is_second, const Launch& on) : on_(on) {
    const Direction& direction = problem.direction;
    x_.problem = problem;
    x_.rows = on.workspace;
    x_.arrays = is_second ? 4 : 1;
    x_.slope_sums = problem.grad_slopes
                        ? x_.row_arrays<T>().of(problem.query_heads(), RowArray::kDelta)
                        : nullptr;
    x_.has_options =
        has_score_options(problem) || problem.seed || direction.bias || direction.slopes;
  }

  const GradientParameters& parameters() const { return x_; }

  void moments() {
    run<MomentsKernel<E, Result::kMeans>>(1, 1);
    run<MomentsKernel<E, Result::kCovariance>>(1, 1);
  }

  // Nothing where there is no result to write.
  template <Result kResult, bool kSecond>
  void sweep(const Operand& result) {
    using K = Kind<kResult, kSecond>;
    const bool wanted = result || (kResult == Result::kQueryGradient && x_.slope_sums);
    if (!wanted) return;
    const SecondOrderProblem& p = x_.problem;
    run<SweepKernel<E, K, kSlice<kSecond>>>(K::kOfValues ? p.value_head_size : p.head_size,
                                            kSlice<kSecond>);
  }

  template <bool kSecond>
  void all_gradients() {
    const SecondOrderProblem& p = x_.problem;
    sweep<Result::kQueryGradient, kSecond>(p.grad_query);
    sweep<Result::kKeyGradient, kSecond>(p.grad_key);
    sweep<Result::kValueGradient, kSecond>(p.grad_value);
    if (p.grad_bias) run<BiasKernel<E, kSecond>>(1, 1);
    if (p.grad_slopes) head_sums<HeadSum::kSlopes>();
    if (p.grad_sink) head_sums<kSecond ? HeadSum::kSinkSecond : HeadSum::kSink>();
  }

 private:
  // Columns of the result, and how many of them a task takes.
  template <class Kernel>
  void run(int64_t columns, int64_t slice) {
    using Task = typename Kernel::Task;
    const SecondOrderProblem& p = x_.problem;
    const int64_t rows = Task::kOwnsKeys ? p.key_length : p.query_length;
    const int64_t chunks = Task::own_chunks(p);
    x_.tiles = (rows + Task::kOwn - 1) / Task::kOwn;
    x_.slices = columns > slice ? (columns + slice - 1) / slice : 1;
    x_.keeps_own = Task::Chunks::shared_bytes(chunks, true) <= shared_memory_limit(on_.stream);
    launch<Kernel>(on_.stream, Kernel::tasks(x_), Task::Chunks::shared_bytes(chunks, x_.keeps_own),
                   x_);
  }
  template <HeadSum kSum>
  void head_sums() {
    using Kernel = HeadSumsKernel<T, kSum>;
    launch<Kernel>(on_.stream, Kernel::tasks(x_), Kernel::kSharedBytes, x_);
  }

  GradientParameters x_{};
  const Launch& on_;
};

}  // namespace torch_ext::cuda
