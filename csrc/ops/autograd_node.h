// The node that a differentiable operator leaves in the graph. It is written like the ones that
// PyTorch generates, since torch::autograd::Function supports neither functorch nor forward mode
// from C++.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/attention.h"

namespace torch_ext::ops {

using torch::autograd::variable_list;

// A node whose derivative is Rule, a struct with
//   Arguments: what the node keeps, one of the structs of attention.h
//   kName: of the node
//   kIsTraceable: whether compiled autograd may trace `differentiate`
//   inputs(arguments): what can be differentiated, in the order of the edges; undefined = absent
//   differentiate(grads, arguments, needs): the gradients of those inputs that `needs` asks for.
//     `grads` belong to the operator's results; undefined = zero, not all of them are.
template <class Rule>
class DerivativeNode : public torch::autograd::TraceableFunction {
 public:
  using Arguments = typename Rule::Arguments;

  std::string name() const override { return Rule::kName; }

  // Called once, when the operator's results have this node as their history.
  void keep(const Arguments& arguments) {
    auto next = tensors_.begin();
    scalars_ = map_tensors(arguments, [&](const Tensor& tensor) {
      const bool is_output = tensor.defined() && tensor.grad_fn().get() == this;
      if (tensor.defined()) *next = {{tensor, is_output}, is_output};
      ++next;
      return Tensor();
    });
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(this->mutex_);
    for (auto& [variable, is_output] : tensors_) variable.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(this->mutex_);
    return differentiate(grads, unpack(), needs());
  }

  // Compiled autograd: what identifies this node in its cache …
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& arguments) const override {
    for (const auto& [variable, is_output] : tensors_) arguments.collect(variable, is_output);
    for_each_scalar(scalars_, [&](const auto& scalar) { arguments.collect(scalar); });
  }

  // … and how it is traced: as a call of `functional` with everything that the node keeps.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    namespace compiled = torch::dynamo::autograd;
    TORCH_CHECK_NOT_IMPLEMENTED(Rule::kIsTraceable, Rule::kName,
                                ": third derivatives do not work under compiled autograd. Call "
                                "backward outside of torch._dynamo.compiled_autograd.");
    for (auto& [variable, is_output] : tensors_) swap.before(variable);
    swap.before(scalars_.options.window_left);
    swap.before(scalars_.options.window_right);
    const std::vector<at::IValue> arguments = pack(unpack(), needs());
    std::vector<at::TypePtr> schema;
    for (const at::IValue& argument : arguments) schema.push_back(argument.type());
    const auto& interface = compiled::getPyCompilerInterface();
    const std::string function =
        interface->bind_function(swap.get_py_compiler(), name(), functional, schema,
                                 /*is_custom_function=*/true, /*is_traceable=*/true);
    using Metadata = std::vector<std::optional<torch::autograd::InputMetadata>>;
    const at::IValue metadata =
        compiled::IValuePacker<Metadata>::pack(compiled::get_input_metadata(this->next_edges()));
    variable_list result = interface->call_function(swap.get_py_compiler(), "apply_functional",
                                                    function, grads, arguments, metadata);
    for (auto& [variable, is_output] : tensors_) swap.after(variable);
    swap.after(scalars_.options.window_left);
    swap.after(scalars_.options.window_right);
    return result;
  }

 private:
  struct Kept {
    torch::autograd::SavedVariable variable;
    bool is_output = false;  // of this node
  };

  static variable_list differentiate(const variable_list& grads, const Arguments& arguments,
                                     const std::vector<bool>& needs) {
    const auto is_defined = [](const Tensor& grad) { return grad.defined(); };
    if (std::none_of(grads.begin(), grads.end(), is_defined)) return variable_list(needs.size());
    return Rule::differentiate(grads, arguments, needs);
  }

  Arguments unpack() {
    auto next = tensors_.begin();
    return map_tensors(scalars_, [&](const Tensor&) {
      auto& [variable, is_output] = *next++;
      return is_output ? variable.unpack(this->getptr()) : variable.unpack();
    });
  }

  std::vector<bool> needs() const {
    std::vector<bool> needs;
    for (size_t edge = 0; edge < this->num_outputs(); ++edge) {
      needs.push_back(this->task_should_compute_output(edge));
    }
    return needs;
  }

  template <class Visit>
  static void for_each_scalar(const Arguments& arguments, Visit visit) {
    map_fields(arguments, [&](const auto& field) {
      if constexpr (!kHoldsTensor<std::decay_t<decltype(field)>>) visit(field);
      return field;
    });
  }

  // All tensors as one list, `needs`, and each of the scalars.
  static std::vector<at::IValue> pack(const Arguments& arguments, const std::vector<bool>& needs) {
    variable_list tensors;
    map_tensors(arguments, [&](const Tensor& tensor) { return tensors.emplace_back(tensor); });
    torch::dynamo::autograd::PackedArgs packed;
    packed.pack(tensors);
    packed.pack(needs);
    for_each_scalar(arguments, [&](const auto& scalar) { packed.pack(scalar); });
    return std::move(packed).vec();
  }

  static variable_list functional(const variable_list& grads,
                                  const std::vector<at::IValue>& values) {
    torch::dynamo::autograd::PackedArgs packed(values);
    const auto tensors = packed.unpack<variable_list>();
    const auto needs = packed.unpack<std::vector<bool>>();
    auto tensor = tensors.begin();
    const Arguments arguments = map_fields(Arguments{}, [&](const auto& field) {
      using Field = std::decay_t<decltype(field)>;
      if constexpr (std::is_same_v<Field, Tensor>) {
        return *tensor++;
      } else if constexpr (std::is_same_v<Field, OptionalTensor>) {
        return absent_if_undefined(*tensor++);
      } else {
        return packed.unpack<Field>();
      }
    });
    return differentiate(grads, arguments, needs);
  }

  Arguments scalars_;                                   // without tensors
  std::array<Kept, kTensorFields<Arguments>> tensors_;  // in schema order, absent ones included
};

// Nodes are owned by shared_ptr in older versions of torch and by intrusive_ptr in newer ones.
template <class Node>
auto make_node() {
  if constexpr (std::is_same_v<decltype(torch::autograd::Edge::function),
                               std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<Node>(new Node(), [](Node* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Node>();
  }
}

// Whether there may be something to differentiate.
template <class Arguments>
bool is_recorded(const Arguments& arguments) {
  if (!at::GradMode::is_enabled()) return false;
  bool found = false;
  for_each_tensor(arguments,
                  [&](const Tensor& tensor) { found = found || tensor.requires_grad(); });
  return found;
}

// Makes the results the outputs of a new node, if there is anything to differentiate.
template <class Rule, class... Results>
void record(const typename Rule::Arguments& arguments, const Results&... results) {
  if (!is_recorded(arguments)) return;
  const variable_list inputs = Rule::inputs(arguments);
  const auto requires_grad = [](const Tensor& input) {
    return input.defined() && input.requires_grad();
  };
  if (std::none_of(inputs.begin(), inputs.end(), requires_grad)) return;
  const auto node = make_node<DerivativeNode<Rule>>();
  torch::autograd::edge_list edges;
  edges.reserve(inputs.size());
  for (const Tensor& input : inputs) {
    edges.push_back(input.defined() ? torch::autograd::impl::gradient_edge(input)
                                    : torch::autograd::Edge());
  }
  node->set_next_edges(std::move(edges));
  (torch::autograd::set_history(results, node), ...);
  node->keep(arguments);
}

}  // namespace torch_ext::ops
