// The operators that are made of others, so that autograd, vmap and tracing see only those.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <c10/core/SymBool.h>
#include <c10/core/SymFloat.h>
#include <torch/library.h>

#include <limits>
#include <vector>

#include "ops/checks.h"

namespace torch_ext::ops {
namespace {

using c10::SymInt;

Tensor attention(const AttentionArguments& arguments) {
  return std::get<0>(AttentionForward::call(broadcast_batch(arguments)));
}

// Whether values can be looked at: not while tracing, and not through the wrappers of functorch.
bool is_plain_cpu_tensor(const Tensor& tensor) {
  return tensor.device().is_cpu() && !tensor.key_set().has(c10::DispatchKey::Python) &&
         tensor.has_storage() && tensor.storage().data() != nullptr;
}

// In all other cases index_select catches what is wrong.
void check_row_range(const Tensor& rows, const Tensor& query) {
  if (!is_plain_cpu_tensor(rows)) return;
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const SymInt count = query.sym_size(-2);
  for (int64_t i = 0; i < rows.size(0); ++i, row += rows.stride(0)) {
    TORCH_SYM_CHECK(count.sym_gt(*row).sym_and(*row >= 0), AttentionWeights::kName,
                    ": expected rows to be at least 0 and less than ", count, ", but got ", *row);
  }
}

// The rows of something that broadcasts to (…, N, M) or (…, N, D).
Tensor select_rows(const Tensor& tensor, const Tensor& rows) {
  const bool is_broadcast =
      !tensor.defined() || tensor.dim() < 2 || TORCH_GUARD_OR_FALSE(tensor.sym_size(-2).sym_eq(1));
  return is_broadcast ? tensor : tensor.index_select(-2, rows);
}

Tensor intersection(const Tensor& a, const Tensor& b) { return a.defined() ? a.logical_and(b) : b; }

// scale·QKᵀ, (…, H, n, M). Grouped heads: the rows of all query heads that share a key head become
// rows of one head, so that key is not repeated.
Tensor scaled_products(const Tensor& query, const Tensor& key, std::optional<double> scale) {
  const at::Scalar factor =
      scale ? at::Scalar(*scale)
            : at::Scalar(c10::SymFloat(1.0) / c10::SymFloat(query.sym_size(-1)).sqrt());
  const Tensor scaled = query * factor, transposed = key.transpose(-2, -1);
  if (query.dim() == 2 || TORCH_GUARD_OR_FALSE(query.sym_size(-3).sym_eq(key.sym_size(-3)))) {
    return at::matmul(scaled, transposed);
  }
  std::vector<SymInt> folded = query.sym_sizes().vec(), unfolded = folded;
  const size_t heads = folded.size() - 3, rows = folded.size() - 2;
  folded[rows] = folded[heads] / key.sym_size(-3) * folded[rows];
  folded[heads] = key.sym_size(-3);
  unfolded.back() = key.sym_size(-2);
  return at::matmul(scaled.reshape_symint(folded), transposed).reshape_symint(unfolded);
}

// What may be seen of (…, H, n, M); undefined when everything may.
Tensor visible_entries(const WeightsArguments& a, const Tensor& mask, const Tensor& bias,
                       const Tensor& rows) {
  Tensor visible = mask;
  if (bias.defined())
    visible = intersection(visible, bias != -std::numeric_limits<double>::infinity());
  if (a.options.is_causal) {
    const auto indices = [&](const SymInt& count) {
      return at::arange(at::Scalar(count), a.query.options().dtype(at::kLong));
    };
    const Tensor i = rows.defined() ? rows : indices(a.query.sym_size(-2));
    visible = intersection(visible, indices(a.key.sym_size(-2)) <= i.unsqueeze(-1));
  }
  return visible;
}

// Softmax over visible entries; rows without any are 0, and so are their gradients.
Tensor visible_softmax(const Tensor& scores, const Tensor& visible) {
  if (!visible.defined()) return scores.softmax(-1);
  const Tensor hidden = visible.logical_not();
  const Tensor has_no_entry = hidden.all(-1, /*keepdim=*/true);
  return scores.masked_fill(hidden, -std::numeric_limits<double>::infinity())
      .masked_fill(has_no_entry, 0)
      .softmax(-1)
      .masked_fill(hidden, 0);
}

Tensor attention_weights(const WeightsArguments& arguments) {
  const WeightsArguments a = broadcast_batch(arguments);
  check(a);
  Tensor query = a.query, mask = value_or_undefined(a.options.mask),
         bias = value_or_undefined(a.options.bias);
  const Tensor rows = value_or_undefined(a.rows);
  if (rows.defined()) {
    check_row_range(rows, query);
    query = query.index_select(-2, rows);
    mask = select_rows(mask, rows);
    bias = select_rows(bias, rows);
  }
  const at::ScalarType type = query.scalar_type(), sum_type = accumulation_type(type);
  Tensor scores = scaled_products(query.to(sum_type), a.key.to(sum_type), a.options.scale);
  if (bias.defined()) scores = scores + bias.to(sum_type);
  return visible_softmax(scores, visible_entries(a, mask, bias, rows)).to(type);
}

void register_kernels(torch::Library& m) {
  m.impl("attention", Attention::kernel<attention>);
  m.impl("attention_weights", AttentionWeights::kernel<attention_weights>);
}

}  // namespace
}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, CompositeImplicitAutograd, m) { torch_ext::ops::register_kernels(m); }

// Without this, vmap would run the composites once per element.
TORCH_LIBRARY_IMPL(torch_ext, FuncTorchBatchedDecomposition, m) {
  torch_ext::ops::register_kernels(m);
}
