#include "ops/describe.h"

#include <algorithm>
#include <cmath>

namespace torch_ext::ops {
namespace {

// Data of tensors without elements.
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
    case at::kLong:
      return DType::Int64;
    default:
      return DType::Bool;
  }
}

// What the dimensions of a tensor are. The last three kinds broadcast: they are aligned at the last
// dimension and repeat sizes of 1.
enum class Layout {
  Matrix,     // (…, H, rows, cols)
  Rows,       // (…, H, rows)
  Broadcast,  // (…, H, rows, cols)
  PerHead,    // (…, H)
  PerSample,  // (…)
};

Operand operand(const Tensor& tensor, int leading_dims, Layout layout) {
  Operand result;
  if (!tensor.defined()) return result;
  result.data = const_cast<void*>(tensor.numel() > 0 ? tensor.const_data_ptr() : kZero);
  result.dtype = dtype_of(tensor.scalar_type());
  const bool repeats = layout != Layout::Matrix && layout != Layout::Rows;
  int64_t dim = tensor.dim();
  const auto next_stride = [&]() -> int64_t {
    if (--dim < 0 || (repeats && tensor.size(dim) == 1)) return 0;
    return tensor.stride(dim);
  };
  const bool is_matrix = layout == Layout::Matrix || layout == Layout::Broadcast;
  if (is_matrix) result.col_stride = next_stride();
  if (is_matrix || layout == Layout::Rows) result.row_stride = next_stride();
  int dims = layout == Layout::PerSample ? leading_dims - 1 : leading_dims;
  while (--dims >= 0) result.leading_strides[dims] = next_stride();
  return result;
}

Operand operand(const OptionalTensor& tensor, int leading_dims, Layout layout) {
  return operand(value_or_undefined(tensor), leading_dims, layout);
}

// Results are described like inputs; asking for their data here undoes copy-on-write sharing.
Operand result_operand(const Tensor& tensor, int leading_dims, Layout layout) {
  if (tensor.defined()) tensor.mutable_data_ptr();
  return operand(tensor, leading_dims, layout);
}

// Being causal limits the window like window_right = 0.
void describe_window(Problem& p, const ScoreOptions& options) {
  p.left = std::min(options.window_left.value_or(kUnlimited), kUnlimited);
  p.right = std::min(options.window_right.value_or(kUnlimited), options.is_causal ? 0 : kUnlimited);
  p.offset = options.bottom_right ? p.key_length - p.query_length : 0;
}

void describe_inputs(Problem& p, const Tensor& query, const Tensor& key, const Tensor& value,
                     const Options& options) {
  const int dims = p.leading_dims = std::max<int>(1, static_cast<int>(query.dim()) - 2);
  p.leading_sizes[0] = 1;  // the one head of a 2-D query
  for (int64_t dim = 0; dim < query.dim() - 2; ++dim) p.leading_sizes[dim] = query.size(dim);
  if (query.dim() > 2 && key.size(-3) > 0) p.group = query.size(-3) / key.size(-3);

  p.query_length = query.size(-2);
  p.key_length = key.size(-2);
  p.head_size = query.size(-1);
  p.value_head_size = value.size(-1);

  p.scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(p.head_size)));
  p.softcap = options.softcap.value_or(0);
  describe_window(p, options);
  p.mask = operand(options.mask, dims, Layout::Broadcast);
  p.bias = operand(options.bias, dims, Layout::Broadcast);
  p.slopes = operand(options.slopes, dims, Layout::PerHead);
  p.sink = operand(options.sink, dims, Layout::PerHead);
  if (options.dropout_p > 0) {
    p.dropout_p = options.dropout_p;
    p.seed = operand(options.seed, dims, Layout::PerSample);
  }
  p.query = operand(query, dims, Layout::Matrix);
  p.key = operand(key, dims, Layout::Matrix);
  p.value = operand(value, dims, Layout::Matrix);
}

// The inputs, and what the forward made of them.
template <class SomeProblem>
void describe_saved(SomeProblem& p, const Saved& saved, const Options& options) {
  describe_inputs(p, saved.query, saved.key, saved.value, options);
  p.output = operand(saved.output, p.leading_dims, Layout::Matrix);
  p.logsumexp = operand(saved.logsumexp, p.leading_dims, Layout::Rows);
  p.logsumexp_residual = operand(saved.logsumexp_residual, p.leading_dims, Layout::Rows);
}

Direction describe_direction(const Tangents& tangents, int dims) {
  return {operand(tangents.query, dims, Layout::Matrix),
          operand(tangents.key, dims, Layout::Matrix),
          operand(tangents.value, dims, Layout::Matrix),
          operand(tangents.bias, dims, Layout::Broadcast),
          operand(tangents.slopes, dims, Layout::PerHead),
          operand(tangents.sink, dims, Layout::PerHead)};
}

void describe_gradients(BackwardProblem& p, const OptionalTensor& grad_output,
                        const OptionalTensor& grad_logsumexp, const BackwardResult& results) {
  const int dims = p.leading_dims;
  p.grad_output = operand(grad_output, dims, Layout::Matrix);
  p.grad_logsumexp = operand(grad_logsumexp, dims, Layout::Rows);
  const auto& [query, key, value, bias, slopes, sink] = results;
  p.grad_query = result_operand(query, dims, Layout::Matrix);
  p.grad_key = result_operand(key, dims, Layout::Matrix);
  p.grad_value = result_operand(value, dims, Layout::Matrix);
  p.grad_bias = result_operand(bias, dims, Layout::Broadcast);
  p.grad_slopes = result_operand(slopes, dims, Layout::PerHead);
  p.grad_sink = result_operand(sink, dims, Layout::PerHead);
}

}  // namespace

ForwardProblem describe(const AttentionArguments& a, const ForwardResult& results) {
  ForwardProblem p;
  describe_inputs(p, a.query, a.key, a.value, a.options);
  const auto& [output, logsumexp, residual] = results;
  p.output = result_operand(output, p.leading_dims, Layout::Matrix);
  p.logsumexp = result_operand(logsumexp, p.leading_dims, Layout::Rows);
  p.logsumexp_residual = result_operand(residual, p.leading_dims, Layout::Rows);
  return p;
}

TangentProblem describe(const TangentArguments& a, const TangentResult& results) {
  TangentProblem p;
  describe_saved(p, a.saved, a.options);
  p.direction = describe_direction(a.tangents, p.leading_dims);
  const auto& [output_tangent, logsumexp_tangent] = results;
  p.output_tangent = result_operand(output_tangent, p.leading_dims, Layout::Matrix);
  p.logsumexp_tangent = result_operand(logsumexp_tangent, p.leading_dims, Layout::Rows);
  return p;
}

BackwardProblem describe(const BackwardArguments& a, const BackwardResult& results) {
  BackwardProblem p;
  describe_saved(p, a.saved, a.options);
  describe_gradients(p, a.grad_output, a.grad_logsumexp, results);
  return p;
}

SecondOrderProblem describe(const SecondOrderArguments& a, const SecondOrderResult& results) {
  SecondOrderProblem p;
  describe_saved(p, a.saved, a.options);
  const auto& [query, key, value, bias, slopes, sink, output_tangent, logsumexp_tangent] = results;
  describe_gradients(p, a.grad_output, a.grad_logsumexp, {query, key, value, bias, slopes, sink});
  p.direction = describe_direction(a.tangents, p.leading_dims);
  p.output_tangent = result_operand(output_tangent, p.leading_dims, Layout::Matrix);
  p.logsumexp_tangent = result_operand(logsumexp_tangent, p.leading_dims, Layout::Rows);
  return p;
}

}  // namespace torch_ext::ops
