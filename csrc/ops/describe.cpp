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

// Fills an empty operand in; leaves it empty where the tensor is undefined.
void set_operand(Operand& result, const Tensor& tensor, int leading_dims, Layout layout) {
  if (!tensor.defined()) return;
  result.data = const_cast<void*>(tensor.numel() > 0 ? tensor.const_data_ptr() : kZero);
  result.dtype = dtype_of(tensor.scalar_type());
  const bool repeats = layout != Layout::Matrix && layout != Layout::Rows;
  const at::IntArrayRef sizes = tensor.sizes(), strides = tensor.strides();
  size_t dim = sizes.size();
  const auto next_stride = [&]() -> int64_t {
    if (dim == 0) return 0;
    --dim;
    return repeats && sizes[dim] == 1 ? 0 : strides[dim];
  };
  const bool is_matrix = layout == Layout::Matrix || layout == Layout::Broadcast;
  if (is_matrix) result.col_stride = next_stride();
  if (is_matrix || layout == Layout::Rows) result.row_stride = next_stride();
  int dims = layout == Layout::PerSample ? leading_dims - 1 : leading_dims;
  while (--dims >= 0) result.leading_strides[dims] = next_stride();
}

void set_operand(Operand& result, const OptionalTensor& tensor, int leading_dims, Layout layout) {
  set_operand(result, value_or_undefined(tensor), leading_dims, layout);
}

// Results are described like inputs; asking for their data here undoes copy-on-write sharing.
void set_result(Operand& result, const Tensor& tensor, int leading_dims, Layout layout) {
  if (tensor.defined()) tensor.mutable_data_ptr();
  set_operand(result, tensor, leading_dims, layout);
}

// Being causal limits the window like window_right = 0.
void describe_window(Problem& p, const ScoreOptions& options) {
  const auto extent = [](const std::optional<c10::SymInt>& extent) {
    return extent ? std::min(extent->guard_int(__FILE__, __LINE__), kUnlimited) : kUnlimited;
  };
  p.left = extent(options.window_left);
  p.right = std::min(extent(options.window_right), options.is_causal ? 0 : kUnlimited);
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
  set_operand(p.mask, options.mask, dims, Layout::Broadcast);
  set_operand(p.bias, options.bias, dims, Layout::Broadcast);
  set_operand(p.slopes, options.slopes, dims, Layout::PerHead);
  set_operand(p.sink, options.sink, dims, Layout::PerHead);
  if (options.dropout_p > 0) {
    p.dropout_p = options.dropout_p;
    set_operand(p.seed, options.seed, dims, Layout::PerSample);
  }
  set_operand(p.query, query, dims, Layout::Matrix);
  set_operand(p.key, key, dims, Layout::Matrix);
  set_operand(p.value, value, dims, Layout::Matrix);
}

// The inputs, and what the forward made of them.
template <class SomeProblem>
void describe_saved(SomeProblem& p, const Saved& saved, const Options& options) {
  describe_inputs(p, saved.query, saved.key, saved.value, options);
  set_operand(p.output, saved.output, p.leading_dims, Layout::Matrix);
  set_operand(p.logsumexp, saved.logsumexp, p.leading_dims, Layout::Rows);
  set_operand(p.logsumexp_residual, saved.logsumexp_residual, p.leading_dims, Layout::Rows);
}

void describe_direction(Direction& d, const Tangents& tangents, int dims) {
  set_operand(d.query, tangents.query, dims, Layout::Matrix);
  set_operand(d.key, tangents.key, dims, Layout::Matrix);
  set_operand(d.value, tangents.value, dims, Layout::Matrix);
  set_operand(d.bias, tangents.bias, dims, Layout::Broadcast);
  set_operand(d.slopes, tangents.slopes, dims, Layout::PerHead);
  set_operand(d.sink, tangents.sink, dims, Layout::PerHead);
}

void describe_gradients(BackwardProblem& p, const OptionalTensor& grad_output,
                        const OptionalTensor& grad_logsumexp, const BackwardResult& results) {
  const int dims = p.leading_dims;
  set_operand(p.grad_output, grad_output, dims, Layout::Matrix);
  set_operand(p.grad_logsumexp, grad_logsumexp, dims, Layout::Rows);
  const auto& [query, key, value, bias, slopes, sink] = results;
  set_result(p.grad_query, query, dims, Layout::Matrix);
  set_result(p.grad_key, key, dims, Layout::Matrix);
  set_result(p.grad_value, value, dims, Layout::Matrix);
  set_result(p.grad_bias, bias, dims, Layout::Broadcast);
  set_result(p.grad_slopes, slopes, dims, Layout::PerHead);
  set_result(p.grad_sink, sink, dims, Layout::PerHead);
}

}  // namespace

ForwardProblem describe(const AttentionArguments& a, const ForwardResult& results) {
  ForwardProblem p;
  describe_inputs(p, a.query, a.key, a.value, a.options);
  const auto& [output, logsumexp, residual] = results;
  set_result(p.output, output, p.leading_dims, Layout::Matrix);
  set_result(p.logsumexp, logsumexp, p.leading_dims, Layout::Rows);
  set_result(p.logsumexp_residual, residual, p.leading_dims, Layout::Rows);
  return p;
}

TangentProblem describe(const TangentArguments& a, const TangentResult& results) {
  TangentProblem p;
  describe_saved(p, a.saved, a.options);
  describe_direction(p.direction, a.tangents, p.leading_dims);
  const auto& [output_tangent, logsumexp_tangent] = results;
  set_result(p.output_tangent, output_tangent, p.leading_dims, Layout::Matrix);
  set_result(p.logsumexp_tangent, logsumexp_tangent, p.leading_dims, Layout::Rows);
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
  describe_direction(p.direction, a.tangents, p.leading_dims);
  set_result(p.output_tangent, output_tangent, p.leading_dims, Layout::Matrix);
  set_result(p.logsumexp_tangent, logsumexp_tangent, p.leading_dims, Layout::Rows);
  return p;
}

}  // namespace torch_ext::ops
