// What the nodes of the four operators do in a backward pass.
#pragma once

#include "ops/autograd_node.h"

namespace torch_ext::ops {

// query, key, value, bias, slopes and sink: the order of gradients, tangents and edges.
constexpr size_t kPrimals = 6;

// Lists of tensors are undefined where a tensor is absent.
template <class... Results>
variable_list as_list(const std::tuple<Results...>& results) {
  return std::apply([](const auto&... tensors) { return variable_list{tensors...}; }, results);
}

// The six tensors from `begin` on.
Tangents as_tangents(variable_list::const_iterator begin);

// The four rules, see DerivativeNode.

template <class Kept>
struct Rule {
  using Arguments = Kept;
  static constexpr bool kIsTraceable = true;
};

struct ForwardRule : Rule<BackwardArguments> {  // keeps no gradients
  static constexpr const char* kName = "TorchExtAttentionBackward";
  static variable_list inputs(const Arguments& a);
  static variable_list differentiate(const variable_list& grads, const Arguments& a,
                                     const std::vector<bool>& needs);
};

struct BackwardRule : Rule<BackwardArguments> {
  static constexpr const char* kName = "TorchExtAttentionSecondOrder";
  static variable_list inputs(const Arguments& a);
  static variable_list differentiate(const variable_list& grads, const Arguments& a,
                                     const std::vector<bool>& needs);
};

struct TangentRule : Rule<TangentArguments> {
  static constexpr const char* kName = "TorchExtAttentionTangentBackward";
  static variable_list inputs(const Arguments& a);
  static variable_list differentiate(const variable_list& grads, const Arguments& a,
                                     const std::vector<bool>& needs);
};

struct SecondOrderRule : Rule<SecondOrderArguments> {
  static constexpr const char* kName = "TorchExtAttentionThirdOrder";
  static constexpr bool kIsTraceable = false;
  static variable_list inputs(const Arguments& a);
  static variable_list differentiate(const variable_list& grads, const Arguments& a,
                                     const std::vector<bool>& needs);
};

}  // namespace torch_ext::ops
