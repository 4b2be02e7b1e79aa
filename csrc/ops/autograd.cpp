// Autograd: the derivatives of the four operators, in reverse and in forward mode. The derivative
// of each operator is made of the other ones,
//   attention_forward       reverse: attention_backward, forward mode: attention_tangent
//   attention_backward      both: attention_second_order, which is linear in the direction
//   attention_tangent       reverse: attention_backward and attention_second_order
// and the rest of dense matrices: every derivative of attention_second_order, and forward mode of
// attention_tangent.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <array>

#include "ops/autograd_node.h"
#include "ops/checks.h"
#include "ops/dense.h"

namespace torch_ext::ops {
namespace {

constexpr size_t kPrimals = 6;

// query, key, value, bias, slopes and sink; undefined = absent
variable_list primals(const Saved& saved, const Options& options) {
  return {saved.query,
          saved.key,
          saved.value,
          value_or_undefined(options.bias),
          value_or_undefined(options.slopes),
          value_or_undefined(options.sink)};
}

variable_list as_list(const Tangents& t) {
  return {value_or_undefined(t.query), value_or_undefined(t.key),    value_or_undefined(t.value),
          value_or_undefined(t.bias),  value_or_undefined(t.slopes), value_or_undefined(t.sink)};
}

// The six tensors from `begin` on.
Tangents as_tangents(variable_list::const_iterator begin) {
  return {absent_if_undefined(begin[0]), absent_if_undefined(begin[1]),
          absent_if_undefined(begin[2]), absent_if_undefined(begin[3]),
          absent_if_undefined(begin[4]), absent_if_undefined(begin[5])};
}

variable_list concatenate(variable_list a, const variable_list& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

template <class... Results>
variable_list as_list(const std::tuple<Results...>& results) {
  return std::apply([](const auto&... tensors) { return variable_list{tensors...}; }, results);
}

// The `count` flags from `begin` on, the rest false.
template <size_t size>
std::array<bool, size> output_mask(std::vector<bool>::const_iterator begin, size_t count = size) {
  std::array<bool, size> mask = {};
  std::copy_n(begin, count, mask.begin());
  return mask;
}

template <size_t size>
bool any(const std::array<bool, size>& mask) {
  return std::find(mask.begin(), mask.end(), true) != mask.end();
}

// What the nodes do

struct ForwardRule {
  using Arguments = BackwardArguments;  // without gradients
  static constexpr const char* kName = "TorchExtAttentionBackward";
  static constexpr bool kIsTraceable = true;

  static variable_list inputs(const Arguments& a) { return primals(a.saved, a.options); }

  static variable_list differentiate(const variable_list& grads, const Arguments& a,
                                     const std::vector<bool>& needs) {
    return as_list(
        AttentionBackward::call({absent_if_undefined(grads[0]), absent_if_undefined(grads[1]),
                                 a.saved, a.options, output_mask<kPrimals>(needs.begin())}));
  }
};

struct BackwardRule {
  using Arguments = BackwardArguments;
  static constexpr const char* kName = "TorchExtAttentionSecondOrder";
  static constexpr bool kIsTraceable = true;

  static variable_list inputs(const Arguments& a) {
    return concatenate({value_or_undefined(a.grad_output), value_or_undefined(a.grad_logsumexp)},
                       primals(a.saved, a.options));
  }

  // grads, of the gradients of the primals, are the direction.
  static variable_list differentiate(const variable_list& grads, const Arguments& a,
                                     const std::vector<bool>& needs) {
    auto mask = output_mask<8>(needs.begin() + 2, kPrimals);
    mask[6] = needs[0];
    mask[7] = needs[1];
    variable_list results = as_list(AttentionSecondOrder::call(
        {a.grad_output, a.grad_logsumexp, as_tangents(grads.begin()), a.saved, a.options, mask}));
    std::rotate(results.begin(), results.begin() + kPrimals, results.end());
    return results;
  }
};

struct TangentRule {
  using Arguments = TangentArguments;
  static constexpr const char* kName = "TorchExtAttentionTangentBackward";
  static constexpr bool kIsTraceable = true;

  static variable_list inputs(const Arguments& a) {
    return concatenate(as_list(a.tangents), primals(a.saved, a.options));
  }

  static variable_list differentiate(const variable_list& grads, const Arguments& a,
                                     const std::vector<bool>& needs) {
    const OptionalTensor grad_output = absent_if_undefined(grads[0]);
    const OptionalTensor grad_logsumexp = absent_if_undefined(grads[1]);
    const auto wanted_tangents = output_mask<kPrimals>(needs.begin());
    const auto wanted_primals = output_mask<8>(needs.begin() + kPrimals, kPrimals);
    variable_list of_tangents(kPrimals), of_primals(kPrimals);
    if (any(wanted_tangents)) {
      of_tangents = as_list(AttentionBackward::call(
          {grad_output, grad_logsumexp, a.saved, a.options, wanted_tangents}));
    }
    if (any(wanted_primals)) {
      of_primals = as_list(AttentionSecondOrder::call(
          {grad_output, grad_logsumexp, a.tangents, a.saved, a.options, wanted_primals}));
      of_primals.resize(kPrimals);
    }
    return concatenate(of_tangents, of_primals);
  }
};

struct SecondOrderRule {
  using Arguments = SecondOrderArguments;
  static constexpr const char* kName = "TorchExtAttentionThirdOrder";
  static constexpr bool kIsTraceable = false;

  static variable_list inputs(const Arguments& a) {
    return concatenate({value_or_undefined(a.grad_output), value_or_undefined(a.grad_logsumexp)},
                       concatenate(as_list(a.tangents), primals(a.saved, a.options)));
  }

  // Evaluates the operator once more, densely, on aliases of its inputs, and differentiates that.
  static variable_list differentiate(const variable_list& grads, const Arguments& a,
                                     const std::vector<bool>& needs) {
    const bool create_graph = at::GradMode::is_enabled();
    const at::AutoGradMode with_graph(true);
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    Arguments aliases = map_tensors(a, [](const Tensor& tensor) {
      return tensor.defined() && tensor.requires_grad() ? tensor.view_as(tensor) : tensor;
    });
    for (size_t i = 0; i < grads.size(); ++i) aliases.output_mask[i] = grads[i].defined();
    const variable_list all = as_list(dense_second_order(aliases)), all_inputs = inputs(aliases);

    variable_list results, cotangents, wanted;
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i].defined() || !all[i].requires_grad()) continue;
      results.push_back(all[i]);
      cotangents.push_back(grads[i]);
    }
    for (size_t i = 0; i < needs.size(); ++i) {
      if (needs[i]) wanted.push_back(all_inputs[i]);
    }
    variable_list gradients(needs.size());
    if (results.empty() || wanted.empty()) return gradients;
    const variable_list found =
        torch::autograd::grad(results, wanted, cotangents, /*retain_graph=*/std::nullopt,
                              create_graph, /*allow_unused=*/true);
    auto next = found.begin();
    for (size_t i = 0; i < needs.size(); ++i) {
      if (needs[i]) gradients[i] = *next++;
    }
    return gradients;
  }
};

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
  if (!any_defined(tangents)) return {};
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
  const auto& [output, logsumexp, residual] = result;
  BackwardArguments kept;
  kept.saved = {a.query, a.key, a.value, output, logsumexp, residual};
  kept.options = a.options;
  const auto [output_tangent, logsumexp_tangent] = tangent_of_forward(kept);
  record<ForwardRule>(kept, output, logsumexp);
  set_tangent(output, output_tangent);
  set_tangent(logsumexp, logsumexp_tangent);
  return result;
}

BackwardResult backward(const BackwardArguments& a) {
  const BackwardResult result = call_below_autograd<AttentionBackward>(a);
  const variable_list tangents = tangent_of_backward(a), results = as_list(result);
  std::apply([&](const auto&... grads) { record<BackwardRule>(a, grads...); }, result);
  for (size_t i = 0; i < kPrimals; ++i) set_tangent(results[i], tangents[i]);
  return result;
}

TangentResult tangent(const TangentArguments& a) {
  if (any_defined(tangents_of(TangentRule::inputs(a)))) {
    check(a);
    return dense_tangent(a);
  }
  const TangentResult result = call_below_autograd<AttentionTangent>(a);
  record<TangentRule>(a, std::get<0>(result), std::get<1>(result));
  return result;
}

SecondOrderResult second_order(const SecondOrderArguments& a) {
  if (any_defined(tangents_of(SecondOrderRule::inputs(a)))) {
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
