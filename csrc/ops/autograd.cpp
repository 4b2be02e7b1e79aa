// Autograd: the derivatives of the four operators, in reverse and in forward mode. The derivative
// of each operator is made of the other ones,
//   attention_forward       reverse: attention_backward, forward mode: attention_tangent
//   attention_backward      both: attention_second_order, which is linear in the direction
//   attention_tangent       reverse: attention_backward and attention_second_order
// and the rest of dense matrices: every derivative of attention_second_order, and forward mode of
// attention_tangent.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <array>

#include "ops/autograd_rules.h"
#include "ops/checks.h"
#include "ops/dense.h"

namespace torch_ext::ops {
namespace {

// Forward mode

Tensor tangent_of(const Tensor& tensor) {
  return tensor.defined() ? tensor._fw_grad(/*level=*/0) : Tensor();
}

// Differentiable, but without its tangent.
Tensor primal_of(const Tensor& tensor) {
  return tangent_of(tensor).defined() ? tensor._fw_primal(/*level=*/0) : tensor;
}

variable_list tangents_of(variable_list tensors) {
  for (Tensor& tensor : tensors) tensor = tangent_of(tensor);
  return tensors;
}

// Whether any tensor has a tangent: hardly ever, and asked before lists of tensors are made.
template <class Arguments>
bool has_tangent(const Arguments& arguments) {
  bool found = false;
  for_each_tensor(arguments, [&](const Tensor& tensor) {
    found = found || tensor._fw_grad(/*level=*/0).defined();
  });
  return found;
}

bool any_defined(const variable_list& tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const Tensor& tensor) { return tensor.defined(); });
}

Tensor sum(const Tensor& a, const Tensor& b) {  // undefined = zero
  if (!a.defined()) return b;
  return b.defined() ? a + b : a;
}

void set_tangent(const Tensor& result, const Tensor& tangent) {
  if (result.defined() && tangent.defined()) {
    result._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
  }
}

TangentResult tangent_of_forward(const BackwardArguments& arguments) {
  const variable_list tangents = tangents_of(ForwardRule::inputs(arguments));
  BackwardArguments a = map_tensors(arguments, primal_of);
  // Not the results themselves: they will own the tangents, whose node must not own them.
  a.saved.output = a.saved.output.detach();
  a.saved.logsumexp = a.saved.logsumexp.detach();
  return AttentionTangent::call({as_tangents(tangents.begin()), a.saved, a.options});
}

// attention_backward is linear in the gradients, and a gradient in the rest.
variable_list tangent_of_backward(const BackwardArguments& arguments) {
  const variable_list tangents = tangents_of(BackwardRule::inputs(arguments));
  const variable_list gradients(tangents.begin(), tangents.begin() + 2);
  const variable_list direction(tangents.begin() + 2, tangents.end());
  variable_list result(kPrimals);
  if (!any_defined(tangents)) return result;
  const BackwardArguments a = map_tensors(arguments, primal_of);
  if (any_defined(direction)) {
    std::array<bool, 8> mask = {};
    std::copy(a.output_mask.begin(), a.output_mask.end(), mask.begin());
    result = as_list(
        AttentionSecondOrder::call({a.grad_output, a.grad_logsumexp, as_tangents(direction.begin()),
                                    a.saved, a.options, mask}));
    result.resize(kPrimals);
  }
  if (any_defined(gradients)) {
    const variable_list other = as_list(AttentionBackward::call(
        {absent_if_undefined(gradients[0]), absent_if_undefined(gradients[1]), a.saved, a.options,
         a.output_mask}));
    for (size_t i = 0; i < kPrimals; ++i) result[i] = sum(result[i], other[i]);
  }
  return result;
}

// The operators

template <class Operator, class Arguments>
auto call_below_autograd(const Arguments& arguments) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return Operator::call(arguments);
}

ForwardResult forward(const AttentionArguments& a) {
  const ForwardResult result = call_below_autograd<AttentionForward>(a);
  const bool is_dual = has_tangent(a);
  if (!is_dual && !is_recorded(a)) return result;
  const auto& [output, logsumexp, residual] = result;
  BackwardArguments kept;
  kept.saved = {a.query, a.key, a.value, output, logsumexp, residual};
  kept.options = a.options;
  const auto [output_tangent, logsumexp_tangent] =
      is_dual ? tangent_of_forward(kept) : TangentResult();
  record<ForwardRule>(kept, output, logsumexp);
  set_tangent(output, output_tangent);
  set_tangent(logsumexp, logsumexp_tangent);
  return result;
}

BackwardResult backward(const BackwardArguments& a) {
  const BackwardResult result = call_below_autograd<AttentionBackward>(a);
  if (!has_tangent(a) && !is_recorded(a)) return result;
  const variable_list tangents = tangent_of_backward(a), results = as_list(result);
  std::apply([&](const auto&... grads) { record<BackwardRule>(a, grads...); }, result);
  for (size_t i = 0; i < kPrimals; ++i) set_tangent(results[i], tangents[i]);
  return result;
}

TangentResult tangent(const TangentArguments& a) {
  if (has_tangent(a) && any_defined(tangents_of(TangentRule::inputs(a)))) {
    check(a);
    return dense_tangent(a);
  }
  const TangentResult result = call_below_autograd<AttentionTangent>(a);
  record<TangentRule>(a, std::get<0>(result), std::get<1>(result));
  return result;
}

SecondOrderResult second_order(const SecondOrderArguments& a) {
  if (has_tangent(a) && any_defined(tangents_of(SecondOrderRule::inputs(a)))) {
    check(a);
    return dense_second_order(a);
  }
  const SecondOrderResult result = call_below_autograd<AttentionSecondOrder>(a);
  std::apply([&](const auto&... grads) { record<SecondOrderRule>(a, grads...); }, result);
  return result;
}

}  // namespace
}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, Autograd, m) {
  using namespace torch_ext::ops;
  m.impl("attention_forward", AttentionForward::kernel<forward>);
  m.impl("attention_backward", AttentionBackward::kernel<backward>);
  m.impl("attention_tangent", AttentionTangent::kernel<tangent>);
  m.impl("attention_second_order", AttentionSecondOrder::kernel<second_order>);
}
