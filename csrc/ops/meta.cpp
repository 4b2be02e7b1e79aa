#include "ops/meta.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_permuted.h>
#include <c10/core/SymBool.h>
#include <c10/util/DimVector.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/checks.h"

namespace torch_ext::ops {
namespace {

// The dimensions from outermost to innermost in memory. Broadcast dimensions (stride 0) have no
// place in memory: they stay between their neighbours, as in TensorIterator.
at::DimVector dimension_order(const Tensor& tensor) {
  const at::SymIntArrayRef strides = tensor.sym_strides();
  at::DimVector order(tensor.dim());
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
  const at::DimVector order = dimension_order(like);
  const bool is_contiguous = std::is_sorted(order.begin(), order.end());
  return is_contiguous ? at::empty_symint(sizes, like.options())
                       : at::empty_permuted_symint(sizes, order, like.options());
}

// (…, H, N, E)
Tensor empty_output(const Tensor& query, const Tensor& value) {
  const at::SymIntArrayRef query_sizes = query.sym_sizes();
  at::SymDimVector sizes(query_sizes.begin(), query_sizes.end());
  sizes.back() = value.sym_size(-1);
  return empty_like_in_order(query, sizes);
}

// (…, H, N)
Tensor empty_logsumexp(const Tensor& query) {
  const at::SymIntArrayRef sizes = query.sym_sizes();
  return at::empty_symint(sizes.slice(0, sizes.size() - 1),
                          query.options().dtype(accumulation_type(query.scalar_type())));
}

// wanted: the first six elements of an output_mask.
BackwardResult empty_gradients(const Saved& saved, const ScoreOptions& options,
                               const bool* wanted) {
  const auto in_order = [&](int index, const Tensor& of) {
    return wanted[index] ? empty_like_in_order(of, of.sym_sizes()) : Tensor();
  };
  const auto contiguous = [&](int index, const OptionalTensor& optional) {
    const Tensor& of = value_or_undefined(optional);
    return wanted[index] && of.defined() ? at::empty_symint(of.sym_sizes(), of.options())
                                         : Tensor();
  };
  return {in_order(0, saved.query),    in_order(1, saved.key),        in_order(2, saved.value),
          contiguous(3, options.bias), contiguous(4, options.slopes), contiguous(5, options.sink)};
}

template <class Result, class Arguments>
Result checked_empty_results(const Arguments& arguments) {
  check(arguments);
  return empty_results(arguments);
}

template <class Operator, class Arguments, class Result, class Fields>
void register_kernel(torch::Library& m, TypedOperator<Operator, Arguments, Result, Fields>) {
  m.impl(Operator::kName, Operator::template kernel<checked_empty_results<Result, Arguments>>);
}

}  // namespace

ForwardResult empty_results(const AttentionArguments& a) {
  return {empty_output(a.query, a.value), empty_logsumexp(a.query), empty_logsumexp(a.query)};
}

BackwardResult empty_results(const BackwardArguments& a) {
  return empty_gradients(a.saved, a.options, a.output_mask.data());
}

TangentResult empty_results(const TangentArguments& a) {
  return {empty_output(a.saved.query, a.saved.value), empty_logsumexp(a.saved.query)};
}

SecondOrderResult empty_results(const SecondOrderArguments& a) {
  return std::tuple_cat(
      empty_gradients(a.saved, a.options, a.output_mask.data()),
      TangentResult{a.output_mask[6] ? empty_output(a.saved.query, a.saved.value) : Tensor(),
                    a.output_mask[7] ? empty_logsumexp(a.saved.query) : Tensor()});
}

Tensor empty_results(const DropoutMaskArguments& a) {
  std::vector<c10::SymInt> sizes = a.seed.sym_sizes().vec();
  sizes.insert(sizes.end(), {a.heads, a.queries, a.keys});
  return at::empty_symint(sizes, a.seed.options().dtype(at::kBool));
}

}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, Meta, m) {
  using namespace torch_ext::ops;
  register_kernel(m, AttentionForward{});
  register_kernel(m, AttentionBackward{});
  register_kernel(m, AttentionTangent{});
  register_kernel(m, AttentionSecondOrder{});
  register_kernel(m, DropoutMask{});
}
