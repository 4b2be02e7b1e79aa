// The CPU kernels: hands the problems to the implementation that this processor runs best.
#include <ATen/Parallel.h>

#include <algorithm>
#include <string>

#include "attention/philox.h"
#include "cpu/implementations.h"
#include "cpu/parallel.h"
#include "ops/on_device.h"

namespace torch_ext::ops {
namespace {

struct Cpu {
  explicit Cpu(const Tensor&) {}

  // In huge pages where it is large.
  void prepare(const Tensor& tensor) const {
    cpu::prefer_huge_pages(tensor.mutable_data_ptr(), static_cast<int64_t>(tensor.nbytes()));
  }

  void run(const ForwardProblem& problem) const { cpu::implementation().forward(problem); }
  void run(const BackwardProblem& problem) const { cpu::implementation().backward(problem); }
  void run(const TangentProblem& problem) const { cpu::implementation().tangent(problem); }
  void run(const SecondOrderProblem& problem) const { cpu::implementation().second_order(problem); }
};

Tensor dropout_mask(const DropoutMaskArguments& a) {
  check(a);
  const Tensor result = empty_results(a), seeds = a.seed.contiguous();
  Cpu(result).prepare(result);
  const int64_t heads = a.heads.expect_int(), queries = a.queries.expect_int();
  const int64_t keys = a.keys.expect_int();
  const uint32_t threshold = dropout_threshold(a.dropout_p);
  const int64_t* seed = seeds.const_data_ptr<int64_t>();
  bool* kept = result.mutable_data_ptr<bool>();
  const int64_t rows = seeds.numel() * heads * queries;
  const int64_t rows_per_task = std::max<int64_t>(1, 2048 / std::max<int64_t>(1, keys));
  at::parallel_for(0, rows, rows_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t query = row % queries, head = row / queries % heads;
      const uint64_t key_seed = static_cast<uint64_t>(seed[row / queries / heads]);
      for (int64_t key = 0; key < keys; ++key) {
        kept[row * keys + key] = dropout_keeps(key_seed, head, query, key, threshold);
      }
    }
  });
  return result;
}

std::string cpu_implementation() { return cpu::implementation().name; }

}  // namespace
}  // namespace torch_ext::ops

// A question about the library, not an operation on tensors.
TORCH_LIBRARY_FRAGMENT(torch_ext, m) {
  m.def("cpu_implementation() -> str", torch_ext::ops::cpu_implementation);
}

TORCH_LIBRARY_IMPL(torch_ext, CPU, m) {
  using namespace torch_ext::ops;
  register_operators<Cpu>(m);
  m.impl("_dropout_mask", DropoutMask::kernel<dropout_mask>);
}
