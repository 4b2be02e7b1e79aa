#include "ops/autograd_rules.h"

#include <torch/csrc/autograd/autograd.h>

#include <array>

#include "ops/dense.h"

namespace torch_ext::ops {
namespace {

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

variable_list concatenate(variable_list a, const variable_list& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// The six flags from `begin` on, the rest false.
template <size_t size>
std::array<bool, size> output_mask(std::vector<bool>::const_iterator begin) {
  std::array<bool, size> mask = {};
  std::copy_n(begin, kPrimals, mask.begin());
  return mask;
}

template <size_t size>
bool any(const std::array<bool, size>& mask) {
  return std::find(mask.begin(), mask.end(), true) != mask.end();
}

// autograd::grad of those results that depend on anything, for those inputs that are needed.
variable_list gradients(const variable_list& results, const variable_list& inputs,
                        const variable_list& grads, const std::vector<bool>& needs,
                        bool create_graph) {
  variable_list of, with, wanted;
  for (size_t i = 0; i < results.size(); ++i) {
    if (!results[i].defined() || !results[i].requires_grad()) continue;
    of.push_back(results[i]);
    with.push_back(grads[i]);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (needs[i]) wanted.push_back(inputs[i]);
  }
  variable_list gradients(inputs.size());
  if (of.empty() || wanted.empty()) return gradients;
  const variable_list found = torch::autograd::grad(of, wanted, with, /*retain_graph=*/std::nullopt,
                                                    create_graph, /*allow_unused=*/true);
  auto next = found.begin();
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (needs[i]) gradients[i] = *next++;
  }
  return gradients;
}

}  // namespace

Tangents as_tangents(variable_list::const_iterator begin) {
  return {absent_if_undefined(begin[0]), absent_if_undefined(begin[1]),
          absent_if_undefined(begin[2]), absent_if_undefined(begin[3]),
          absent_if_undefined(begin[4]), absent_if_undefined(begin[5])};
}

variable_list ForwardRule::inputs(const Arguments& a) { return primals(a.saved, a.options); }

variable_list ForwardRule::differentiate(const variable_list& grads, const Arguments& a,
                                         const std::vector<bool>& needs) {
  return as_list(
      AttentionBackward::call({absent_if_undefined(grads[0]), absent_if_undefined(grads[1]),
                               a.saved, a.options, output_mask<6>(needs.begin())}));
}

variable_list BackwardRule::inputs(const Arguments& a) {
  return concatenate({value_or_undefined(a.grad_output), value_or_undefined(a.grad_logsumexp)},
                     primals(a.saved, a.options));
}

// The gradients of the gradients are a direction. With respect to grad_output and grad_logsumexp
// alone, attention_backward is the transpose of attention_tangent.
variable_list BackwardRule::differentiate(const variable_list& grads, const Arguments& a,
                                          const std::vector<bool>& needs) {
  const Tangents direction = as_tangents(grads.begin());
  auto mask = output_mask<8>(needs.begin() + 2);
  if (!any(mask)) {
    variable_list tangents = as_list(AttentionTangent::call({direction, a.saved, a.options}));
    tangents.resize(needs.size());
    return tangents;
  }
  mask[6] = needs[0];
  mask[7] = needs[1];
  variable_list results = as_list(AttentionSecondOrder::call(
      {a.grad_output, a.grad_logsumexp, direction, a.saved, a.options, mask}));
  std::rotate(results.begin(), results.begin() + kPrimals, results.end());
  return results;
}

variable_list TangentRule::inputs(const Arguments& a) {
  return concatenate(as_list(a.tangents), primals(a.saved, a.options));
}

// With respect to the tangents, the transpose of attention_tangent is attention_backward.
variable_list TangentRule::differentiate(const variable_list& grads, const Arguments& a,
                                         const std::vector<bool>& needs) {
  const OptionalTensor grad_output = absent_if_undefined(grads[0]);
  const OptionalTensor grad_logsumexp = absent_if_undefined(grads[1]);
  const auto wanted_tangents = output_mask<6>(needs.begin());
  const auto wanted_primals = output_mask<8>(needs.begin() + kPrimals);
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

variable_list SecondOrderRule::inputs(const Arguments& a) {
  return concatenate({value_or_undefined(a.grad_output), value_or_undefined(a.grad_logsumexp)},
                     concatenate(as_list(a.tangents), primals(a.saved, a.options)));
}

// Evaluates the operator once more, densely, on aliases of its inputs, and differentiates that.
variable_list SecondOrderRule::differentiate(const variable_list& grads, const Arguments& a,
                                             const std::vector<bool>& needs) {
  const bool create_graph = at::GradMode::is_enabled();
  const at::AutoGradMode with_graph(true);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  Arguments aliases = map_tensors(a, [](const Tensor& tensor) {
    return tensor.defined() && tensor.requires_grad() ? tensor.view_as(tensor) : tensor;
  });
  for (size_t i = 0; i < grads.size(); ++i) aliases.output_mask[i] = grads[i].defined();
  return gradients(as_list(dense_second_order(aliases)), inputs(aliases), grads, needs,
                   create_graph);
}

}  // namespace torch_ext::ops
