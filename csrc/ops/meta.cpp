#include "ops/meta.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_permuted.h>
#include <c10/core/SymBool.h>
#include <torch/library.h>

#include <numeric>
#include <vector>

#include "ops/checks.h"

namespace torch_ext::ops {
namespace {

// The dimensions from outermost to innermost in memory. Broadcast dimensions (stride 0) have no
// place in memory: they stay between their neighbours, as in TensorIterator.
std::vector<int64_t> dimension_order(const Tensor& tensor) {
  const at::SymIntArrayRef strides = tensor.sym_strides();
  std::vector<int64_t> order(tensor.dim());
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = 1; i < order.size(); ++i) {
    size_t moving = i;
    for (size_t other = i; other-- > 0;) {
      const c10::SymInt& outer = strides[order[other]];
      const c10::SymInt& inner = strides[order[moving]];
      if (TORCH_GUARD_OR_FALSE(outer.sym_eq(0)) || TORCH_GUARD_OR_FALSE(inner.sym_eq(0))) continue;
      if (!TORCH_GUARD_OR_FALSE(outer.sym_lt(inner))) break;
      std::swap(order[other], order[moving]);
      moving = other;
    }
  }
  return order;
}

Tensor empty_like_in_order(const Tensor& like, at::SymIntArrayRef sizes) {
  return at::empty_permuted_symint(sizes, dimension_order(like), like.options());
}

ForwardResult forward(const AttentionArguments& arguments) {
  check(arguments);
  return empty_results(arguments);
}

BackwardResult backward(const BackwardArguments& arguments) {
  check(arguments);
  return empty_results(arguments);
}

}  // namespace

ForwardResult empty_results(const AttentionArguments& a) {
  std::vector<c10::SymInt> sizes = a.query.sym_sizes().vec();
  sizes.back() = a.value.sym_size(-1);
  const at::SymIntArrayRef rows = at::SymIntArrayRef(sizes).slice(0, sizes.size() - 1);
  const at::TensorOptions row_options =
      a.query.options().dtype(accumulation_type(a.query.scalar_type()));
  return {empty_like_in_order(a.query, sizes), at::empty_symint(rows, row_options),
          at::empty_symint(rows, row_options)};
}

BackwardResult empty_results(const BackwardArguments& a) {
  const auto gradient = [](bool is_wanted, const Tensor& of) {
    return is_wanted ? empty_like_in_order(of, of.sym_sizes()) : Tensor();
  };
  const Tensor bias = value_or_undefined(a.options.bias);
  return {gradient(a.output_mask[0], a.query), gradient(a.output_mask[1], a.key),
          gradient(a.output_mask[2], a.value),
          a.output_mask[3] && bias.defined() ? at::empty_symint(bias.sym_sizes(), bias.options())
                                             : Tensor()};
}

}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, Meta, m) {
  using namespace torch_ext::ops;
  m.impl("attention_forward", AttentionForward::kernel<forward>);
  m.impl("attention_backward", AttentionBackward::kernel<backward>);
}
