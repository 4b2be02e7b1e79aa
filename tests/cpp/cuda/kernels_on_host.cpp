// What cuda_tests compares with the reference: the CUDA kernels, run on the host.
#include <gtest/gtest.h>

#include "compare.h"
#include "cuda/operators.h"

namespace torch_ext::test {
namespace {

// The workspace is full of NaN before, and nothing is written behind it.
template <class P, int64_t (*workspace)(const P&), void (*run)(const P&, const cuda::Launch&)>
void on_host(const P& p) {
  const int64_t bytes = workspace(p), alignment = 256;
  const FencedMemory memory((bytes + alignment - 1) / alignment * alignment);
  run(p, {{}, bytes > 0 ? memory.begin() : nullptr});
  std::vector<bool> may_change(memory.size());
  std::fill_n(may_change.begin(), bytes, true);
  EXPECT_TRUE(memory.untouched_except(may_change)) << "written outside the workspace";
}

}  // namespace

std::vector<cpu::Implementation> fast_implementations() {
  using namespace cuda;
  return {{"cuda", [] { return true; }, on_host<ForwardProblem, forward_workspace, forward>,
           on_host<BackwardProblem, backward_workspace, backward>,
           on_host<TangentProblem, tangent_workspace, tangent>,
           on_host<SecondOrderProblem, second_order_workspace, second_order>}};
}

bool rounds_weights(const cpu::Implementation&, DType dtype) {
  return dtype == DType::BFloat16 || dtype == DType::Float16;
}

Sampling sampling() { return {8, 20000, 13}; }

}  // namespace torch_ext::test
