// The CPU kernels: describes tensors to the implementation that this processor runs best.
//
// Negative and conjugate views are resolved by the dispatcher before these functions see them. No
// input is ever made contiguous here: strides go down as they are.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "attention/problem.h"
#include "cpu/implementations.h"
#include "ops/checks.h"
#include "ops/meta.h"

namespace torch_ext::ops {
namespace {

// Data of tensors without elements, and of a gradient that is zero everywhere (all its strides are
// 0).
alignas(8) const char kZero[8] = {};

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::Float64;
    case at::kFloat:
      return DType::Float32;
    case at::kBFloat16:
      return DType::BFloat16;
    case at::kHalf:
      return DType::Float16;
    default:
      return DType::Bool;
  }
}

enum class Layout {
  Matrix,     // (…, rows, cols)
  Broadcast,  // the same, aligned at the last dimension; sizes of 1 are repeated
  Rows,       // (…, rows)
};

Operand operand(const Tensor& tensor, int leading_dims, Layout layout = Layout::Matrix) {
  Operand result;
  if (!tensor.defined()) return result;
  result.data = const_cast<void*>(tensor.numel() > 0 ? tensor.const_data_ptr() : kZero);
  result.dtype = dtype_of(tensor.scalar_type());
  int64_t dim = tensor.dim();
  const auto next_stride = [&]() -> int64_t {
    if (--dim < 0 || (layout == Layout::Broadcast && tensor.size(dim) == 1)) return 0;
    return tensor.stride(dim);
  };
  if (layout != Layout::Rows) result.col_stride = next_stride();
  result.row_stride = next_stride();
  for (int i = leading_dims - 1; i >= 0; --i) result.leading_strides[i] = next_stride();
  return result;
}

// Results are described like inputs; asking for their data here undoes copy-on-write sharing.
Operand result_operand(const Tensor& tensor, int leading_dims, Layout layout = Layout::Matrix) {
  if (tensor.defined()) tensor.mutable_data_ptr();
  return operand(tensor, leading_dims, layout);
}

void describe(Problem& p, const Tensor& query, const Tensor& key, const Tensor& value,
              const Options& options) {
  p.leading_dims = std::max<int>(1, static_cast<int>(query.dim()) - 2);
  p.leading_sizes[0] = 1;  // the one head of a 2-D query
  for (int64_t dim = 0; dim < query.dim() - 2; ++dim) p.leading_sizes[dim] = query.size(dim);
  if (query.dim() > 2 && key.size(-3) > 0) p.group = query.size(-3) / key.size(-3);

  p.query_length = query.size(-2);
  p.key_length = key.size(-2);
  p.head_size = query.size(-1);
  p.value_head_size = value.size(-1);

  p.scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(p.head_size)));
  p.is_causal = options.is_causal;
  p.mask = operand(value_or_undefined(options.mask), p.leading_dims, Layout::Broadcast);
  p.bias = operand(value_or_undefined(options.bias), p.leading_dims, Layout::Broadcast);
  p.query = operand(query, p.leading_dims);
  p.key = operand(key, p.leading_dims);
  p.value = operand(value, p.leading_dims);
}

ForwardResult forward(const AttentionArguments& a) {
  check(a);
  ForwardResult results = empty_results(a);
  const auto& [output, logsumexp, residual] = results;
  if (logsumexp.numel() == 0) return results;
  if (a.key.size(-2) == 0) {  // nothing to attend to
    output.zero_();
    logsumexp.fill_(-std::numeric_limits<double>::infinity());
    residual.zero_();
    return results;
  }
  ForwardProblem p;
  describe(p, a.query, a.key, a.value, a.options);
  p.output = result_operand(output, p.leading_dims);
  p.logsumexp = result_operand(logsumexp, p.leading_dims, Layout::Rows);
  p.logsumexp_residual = result_operand(residual, p.leading_dims, Layout::Rows);
  cpu::implementation().forward(p);
  return results;
}

BackwardResult backward(const BackwardArguments& a) {
  check(a);
  BackwardResult results = empty_results(a);
  auto& [grad_query, grad_key, grad_value, grad_bias] = results;
  const Tensor grad_output = value_or_undefined(a.grad_output);
  const Tensor grad_logsumexp = value_or_undefined(a.grad_logsumexp);
  if (a.logsumexp.numel() == 0 || a.key.size(-2) == 0 ||
      !(grad_output.defined() || grad_logsumexp.defined())) {
    for (const Tensor& grad : {grad_query, grad_key, grad_value, grad_bias}) {
      if (grad.defined()) grad.zero_();
    }
    return results;
  }

  BackwardProblem p;
  describe(p, a.query, a.key, a.value, a.options);
  p.output = operand(a.output, p.leading_dims);
  p.logsumexp = operand(a.logsumexp, p.leading_dims, Layout::Rows);
  p.logsumexp_residual = operand(a.logsumexp_residual, p.leading_dims, Layout::Rows);
  p.grad_output = operand(grad_output, p.leading_dims);
  p.grad_logsumexp = operand(grad_logsumexp, p.leading_dims, Layout::Rows);
  p.grad_query = result_operand(grad_query, p.leading_dims);
  p.grad_key = result_operand(grad_key, p.leading_dims);
  p.grad_value = result_operand(grad_value, p.leading_dims);
  Tensor bias_sums;  // in the accumulation type, rounded once when complete
  if (grad_bias.defined()) {
    const at::ScalarType type = accumulation_type(a.query.scalar_type());
    bias_sums = type == grad_bias.scalar_type()
                    ? grad_bias.zero_()
                    : at::zeros(grad_bias.sizes(), grad_bias.options().dtype(type));
    p.grad_bias = result_operand(bias_sums, p.leading_dims, Layout::Broadcast);
  }
  cpu::implementation().backward(p);
  if (grad_bias.defined() && !bias_sums.is_same(grad_bias)) grad_bias.copy_(bias_sums);
  return results;
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
}
