// What the operators of every device do around its kernels: results, cases without work, sums.
//
// A Device is made from a tensor that lies on it, after the checks, and has
//   void prepare(const Tensor& tensor) const   called for memory that is not yet written
//   void run(const SomeProblem& problem) const for the problem of each of the four operators
// Negative and conjugate views are resolved by the dispatcher before these functions see them.
#pragma once

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/describe.h"
#include "ops/meta.h"

namespace torch_ext::ops {

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

inline bool has_tangent(const Tangents& tangents) {
  bool found = false;
  for_each_tensor(tangents, [&](const Tensor&) { found = true; });
  return found;
}

template <class Device, class Arguments>
auto fresh_results(const Device& device, const Arguments& arguments) {
  const auto results = empty_results(arguments);
  const auto prepare = [&](const Tensor& tensor) {
    if (tensor.defined()) device.prepare(tensor);
  };
  std::apply([&](const auto&... tensors) { (prepare(tensors), ...); }, results);
  return results;
}

// A tensor of the accumulation type in the place of `gradient`, which itself is one for most
// dtypes.
template <class Device>
Tensor unrounded(const Device& device, const Tensor& gradient) {
  if (!gradient.defined()) return gradient;
  const at::ScalarType type = accumulation_type(gradient.scalar_type());
  if (type == gradient.scalar_type()) return gradient;
  const Tensor sums = at::empty(gradient.sizes(), gradient.options().dtype(type));
  device.prepare(sums);
  return sums;
}

// Runs the problem that `arguments` and `results` describe. The gradients of bias, slopes and sink
// are sums over the dimensions in which these are broadcast: they are rounded once, when complete.
template <class Device, class Arguments, class Result>
void run_with_sums(const Device& device, const Arguments& arguments, const Result& results) {
  Result sums = results;
  const auto for_each_sum = [&](const auto& visit) {
    visit(std::get<3>(sums), std::get<3>(results));
    visit(std::get<4>(sums), std::get<4>(results));
    visit(std::get<5>(sums), std::get<5>(results));
  };
  for_each_sum([&](Tensor& sum, const Tensor& gradient) { sum = unrounded(device, gradient); });
  device.run(describe(arguments, sums));
  for_each_sum([](const Tensor& sum, const Tensor& gradient) {
    if (!sum.is_same(gradient)) gradient.copy_(sum);
  });
}

template <class Device>
ForwardResult forward(const AttentionArguments& a) {
  check(a);
  const Device device(a.query);
  const ForwardResult results = fresh_results(device, a);
  if (std::get<1>(results).numel() > 0) device.run(describe(a, results));
  return results;
}

template <class Device>
BackwardResult backward(const BackwardArguments& a) {
  check(a);
  const Device device(a.saved.query);
  const BackwardResult results = fresh_results(device, a);
  if (a.saved.logsumexp.numel() == 0 || !has_gradient(a)) return zero(results);
  run_with_sums(device, a, results);
  return results;
}

template <class Device>
TangentResult tangent(const TangentArguments& a) {
  check(a);
  const Device device(a.saved.query);
  const TangentResult results = fresh_results(device, a);
  if (a.saved.logsumexp.numel() == 0 || !has_tangent(a.tangents)) return zero(results);
  device.run(describe(a, results));
  return results;
}

template <class Device>
SecondOrderResult second_order(const SecondOrderArguments& a) {
  check(a);
  const Device device(a.saved.query);
  const SecondOrderResult results = fresh_results(device, a);
  if (a.saved.logsumexp.numel() == 0 || !has_tangent(a.tangents)) return zero(results);
  if (!has_gradient(a)) {  // what is left are the tangents
    SecondOrderResult tangents;
    std::get<6>(tangents) = std::get<6>(zero(results));
    std::get<7>(tangents) = std::get<7>(results);
    device.run(describe(a, tangents));
    return results;
  }
  run_with_sums(device, a, results);
  return results;
}

template <class Device>
void register_operators(torch::Library& m) {
  m.impl("attention_forward", AttentionForward::kernel<forward<Device>>);
  m.impl("attention_backward", AttentionBackward::kernel<backward<Device>>);
  m.impl("attention_tangent", AttentionTangent::kernel<tangent<Device>>);
  m.impl("attention_second_order", AttentionSecondOrder::kernel<second_order<Device>>);
}

}  // namespace torch_ext::ops
