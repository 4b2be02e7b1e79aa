// The CPU kernels: hands the problems to the implementation that this processor runs best.
//
// Negative and conjugate views are resolved by the dispatcher before these functions see them.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "attention/philox.h"
#include "cpu/implementations.h"
#include "cpu/pages.h"
#include "ops/checks.h"
#include "ops/describe.h"
#include "ops/meta.h"

namespace torch_ext::ops {
namespace {

template <class Result>
Result zero(const Result& results) {
  const auto fill = [](const Tensor& tensor) {
    if (tensor.defined()) tensor.zero_();
  };
  std::apply([&](const auto&... tensors) { (fill(tensors), ...); }, results);
  return results;
}

template <class Arguments>
bool has_gradient(const Arguments& a) {
  return value_or_undefined(a.grad_output).defined() ||
         value_or_undefined(a.grad_logsumexp).defined();
}

bool has_tangent(const Tangents& tangents) {
  bool found = false;
  for_each_tensor(tangents, [&](const Tensor&) { found = true; });
  return found;
}

// Not yet written, in huge pages where it is large.
const Tensor& fresh(const Tensor& tensor) {
  if (tensor.defined()) {
    cpu::prefer_huge_pages(tensor.mutable_data_ptr(), static_cast<int64_t>(tensor.nbytes()));
  }
  return tensor;
}

template <class Arguments>
auto fresh_results(const Arguments& arguments) {
  const auto results = empty_results(arguments);
  std::apply([](const auto&... tensors) { (fresh(tensors), ...); }, results);
  return results;
}

Tensor zero_sums(const Tensor& gradient) {
  if (!gradient.defined()) return gradient;
  const at::ScalarType type = accumulation_type(gradient.scalar_type());
  if (type == gradient.scalar_type()) return gradient.zero_();
  return fresh(at::empty(gradient.sizes(), gradient.options().dtype(type))).zero_();
}

// The gradients of bias, slopes and sink are sums over the dimensions in which these are broadcast.
// run(results) gets zero-filled tensors of the accumulation type in their places and adds to them;
// they are rounded once, when complete.
template <class Result, class Run>
void accumulate(const Result& results, const Run& run) {
  Result sums = results;
  const auto for_each_sum = [&](const auto& visit) {
    visit(std::get<3>(sums), std::get<3>(results));
    visit(std::get<4>(sums), std::get<4>(results));
    visit(std::get<5>(sums), std::get<5>(results));
  };
  for_each_sum([](Tensor& sum, const Tensor& gradient) { sum = zero_sums(gradient); });
  run(sums);
  for_each_sum([](const Tensor& sum, const Tensor& gradient) {
    if (!sum.is_same(gradient)) gradient.copy_(sum);
  });
}

ForwardResult forward(const AttentionArguments& a) {
  check(a);
  const ForwardResult results = fresh_results(a);
  if (std::get<1>(results).numel() > 0) cpu::implementation().forward(describe(a, results));
  return results;
}

BackwardResult backward(const BackwardArguments& a) {
  check(a);
  const BackwardResult results = fresh_results(a);
  if (a.saved.logsumexp.numel() == 0 || !has_gradient(a)) return zero(results);
  accumulate(results, [&](const BackwardResult& sums) {
    cpu::implementation().backward(describe(a, sums));
  });
  return results;
}

TangentResult tangent(const TangentArguments& a) {
  check(a);
  const TangentResult results = fresh_results(a);
  if (a.saved.logsumexp.numel() == 0 || !has_tangent(a.tangents)) return zero(results);
  cpu::implementation().tangent(describe(a, results));
  return results;
}

SecondOrderResult second_order(const SecondOrderArguments& a) {
  check(a);
  const SecondOrderResult results = fresh_results(a);
  if (a.saved.logsumexp.numel() == 0 || !has_tangent(a.tangents)) return zero(results);
  if (!has_gradient(a)) {  // what is left are the tangents
    SecondOrderResult tangents;
    std::get<6>(tangents) = std::get<6>(zero(results));
    std::get<7>(tangents) = std::get<7>(results);
    cpu::implementation().second_order(describe(a, tangents));
    return results;
  }
  accumulate(results, [&](const SecondOrderResult& sums) {
    cpu::implementation().second_order(describe(a, sums));
  });
  return results;
}

Tensor dropout_mask(const DropoutMaskArguments& a) {
  check(a);
  const Tensor result = fresh(empty_results(a)), seeds = a.seed.contiguous();
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
  m.impl("attention_forward", AttentionForward::kernel<forward>);
  m.impl("attention_backward", AttentionBackward::kernel<backward>);
  m.impl("attention_tangent", AttentionTangent::kernel<tangent>);
  m.impl("attention_second_order", AttentionSecondOrder::kernel<second_order>);
  m.impl("_dropout_mask", DropoutMask::kernel<dropout_mask>);
}
