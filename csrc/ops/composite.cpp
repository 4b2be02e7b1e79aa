// The operators that are made of others, so that autograd, vmap and tracing see only those.
#include <ATen/ops/randint.h>
#include <c10/core/SymBool.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "ops/broadcast.h"
#include "ops/checks.h"
#include "ops/dense_weights.h"

namespace torch_ext::ops {
namespace {

// A seed per batch element, from torch's generator: torch.manual_seed decides it, and vmap's
// randomness whether it is the same for all elements.
Tensor draw_seed(const Tensor& query) {
  const at::SymIntArrayRef sizes = query.sym_sizes();
  return at::randint_symint(std::numeric_limits<int64_t>::max(),
                            sizes.slice(0, std::max<int64_t>(query.dim(), 3) - 3),
                            query.options().dtype(at::kLong));
}

Tensor attention(AttentionArguments a) {
  broadcast_batch(a);
  Options& options = a.options;
  if (options.dropout_p > 0 && !value_or_undefined(options.seed).defined()) {
    options.seed = draw_seed(a.query);
  }
  return std::get<0>(AttentionForward::call(a));
}

Tensor attention_with_few_options(const Tensor& query, const Tensor& key, const Tensor& value,
                                  bool is_causal, std::optional<double> scale,
                                  const std::optional<Tensor>& mask,
                                  const std::optional<Tensor>& bias) {
  AttentionArguments a{query, key, value, {}};
  a.options.is_causal = is_causal;
  a.options.scale = scale;
  a.options.mask = mask;
  a.options.bias = bias;
  return attention(std::move(a));
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
  const c10::SymInt count = query.sym_size(-2);
  for (int64_t i = 0; i < rows.size(0); ++i, row += rows.stride(0)) {
    TORCH_SYM_CHECK(count.sym_gt(*row).sym_and(*row >= 0), AttentionWeights::kName,
                    ": expected rows to be at least 0 and less than ", count, ", but got ", *row);
  }
}

Tensor attention_weights(WeightsArguments a) {
  broadcast_batch(a);
  check(a);
  if (const Tensor& rows = value_or_undefined(a.rows); rows.defined()) {
    check_row_range(rows, a.query);
  }
  const DenseWeights dense = dense_weights(a);
  return dense.columns(dense.weights).to(a.query.scalar_type());
}

void register_kernels(torch::Library& m) {
  m.impl("attention", Attention::kernel<attention>);
  m.impl("_attention", attention_with_few_options);
  m.impl("attention_weights", AttentionWeights::kernel<attention_weights>);
}

}  // namespace
}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, CompositeImplicitAutograd, m) { torch_ext::ops::register_kernels(m); }

// Without this, vmap would run the composites once per element.
TORCH_LIBRARY_IMPL(torch_ext, FuncTorchBatchedDecomposition, m) {
  torch_ext::ops::register_kernels(m);
}
