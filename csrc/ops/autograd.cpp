// Autograd: the node that attention_forward leaves in the graph, and the refusals of what has no
// derivative yet. The node is written like the ones that PyTorch generates, since
// torch::autograd::Function supports neither functorch nor forward mode from C++.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "ops/checks.h"

namespace torch_ext::ops {
namespace {

namespace autograd = torch::autograd;
namespace compiled = torch::dynamo::autograd;
using autograd::SavedVariable;
using autograd::variable_list;

// Nodes are owned by shared_ptr in older versions of torch and by intrusive_ptr in newer ones.
using NodePointer = decltype(autograd::Edge::function);

template <class Node, class... Arguments>
auto make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<autograd::Node>>) {
    return std::shared_ptr<Node>(new Node(std::forward<Arguments>(arguments)...),
                                 [](Node* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Node>(std::forward<Arguments>(arguments)...);
  }
}

template <class Arguments>
bool requires_grad(const Arguments& arguments) {
  bool found = false;
  for_each_tensor(arguments, [&](const Tensor& tensor) { found |= tensor.requires_grad(); });
  return found && at::GradMode::is_enabled();
}

template <class Arguments>
void refuse_tangents(const char* op, const Arguments& arguments) {
  for_each_tensor(arguments, [&](const Tensor& tensor) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !tensor._fw_grad(/*level=*/0).defined(), op,
        ": forward-mode differentiation is not available yet. Use reverse mode, or "
        "torch.nn.functional.scaled_dot_product_attention under "
        "torch.nn.attention.sdpa_kernel(SDPBackend.MATH).");
  });
}

// What the node keeps, in this order.
enum Saved { kQuery, kKey, kValue, kMask, kBias, kOutput, kLogsumexp, kResidual, kSavedCount };

bool is_output(int saved) { return saved == kOutput || saved == kLogsumexp; }

// The gradients of query, key, value and bias. grads: of output and logsumexp, undefined where
// zero.
variable_list differentiate(const variable_list& grads, const variable_list& saved, bool is_causal,
                            std::optional<double> scale, std::array<bool, 4> output_mask) {
  if (!grads[0].defined() && !grads[1].defined()) return variable_list(4);
  output_mask[3] = output_mask[3] && saved[kBias].defined();
  auto [query, key, value, bias] = AttentionBackward::call(
      {absent_if_undefined(grads[0]),
       absent_if_undefined(grads[1]),
       saved[kQuery],
       saved[kKey],
       saved[kValue],
       saved[kOutput],
       saved[kLogsumexp],
       saved[kResidual],
       {absent_if_undefined(saved[kMask]), absent_if_undefined(saved[kBias]), is_causal, scale},
       output_mask});
  return {query, key, value, bias};
}

struct TorchExtAttentionBackward : autograd::TraceableFunction {
  std::array<SavedVariable, kSavedCount> saved;
  bool is_causal = false;
  std::optional<double> scale;

  std::string name() const override { return "TorchExtAttentionBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& variable : saved) variable.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return differentiate(grads, unpack(), is_causal, scale, output_mask());
  }

  // Compiled autograd: what identifies this node in its cache …
  void compiled_args(compiled::CompiledNodeArgs& arguments) const override {
    for (int i = 0; i < kSavedCount; ++i) arguments.collect(saved[i], is_output(i));
    arguments.collect(is_causal);
    arguments.collect(scale);
  }

  // … and how it is traced: as a call of `functional` with everything that the node keeps.
  variable_list apply_with_saved(const variable_list& grads,
                                 compiled::SwapSavedVariables& swap) override {
    for (SavedVariable& variable : saved) swap.before(variable);
    compiled::PackedArgs packed;
    packed.pack(unpack());
    packed.pack(is_causal);
    packed.pack(scale);
    const std::array<bool, 4> mask = output_mask();
    packed.pack(std::vector<bool>(mask.begin(), mask.end()));
    const std::vector<at::IValue> arguments = std::move(packed).vec();
    std::vector<at::TypePtr> schema;
    for (const at::IValue& argument : arguments) schema.push_back(argument.type());

    const auto& interface = compiled::getPyCompilerInterface();
    const std::string function =
        interface->bind_function(swap.get_py_compiler(), name(), functional, schema,
                                 /*is_custom_function=*/true, /*is_traceable=*/true);
    const auto metadata =
        compiled::IValuePacker<std::vector<std::optional<autograd::InputMetadata>>>::pack(
            compiled::get_input_metadata(next_edges()));
    variable_list result = interface->call_function(swap.get_py_compiler(), "apply_functional",
                                                    function, grads, arguments, metadata);
    for (SavedVariable& variable : saved) swap.after(variable);
    return result;
  }

 private:
  static variable_list functional(const variable_list& grads,
                                  const std::vector<at::IValue>& arguments) {
    compiled::PackedArgs packed(arguments);
    const auto tensors = packed.unpack<variable_list>();
    const auto is_causal = packed.unpack<bool>();
    const auto scale = packed.unpack<std::optional<double>>();
    const auto mask = packed.unpack<std::vector<bool>>();
    return differentiate(grads, tensors, is_causal, scale, {mask[0], mask[1], mask[2], mask[3]});
  }

  variable_list unpack() {
    variable_list tensors;
    for (int i = 0; i < kSavedCount; ++i) {
      tensors.push_back(is_output(i) ? saved[i].unpack(getptr()) : saved[i].unpack());
    }
    return tensors;
  }

  std::array<bool, 4> output_mask() const {
    std::array<bool, 4> mask;
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = task_should_compute_output(i);
    return mask;
  }
};

auto make_backward_node(const AttentionArguments& a) {
  const Options& options = a.options;
  auto node = make_node<TorchExtAttentionBackward>();
  node->set_next_edges(autograd::collect_next_edges(a.query, a.key, a.value, options.bias));
  node->saved[kQuery] = SavedVariable(a.query, false);
  node->saved[kKey] = SavedVariable(a.key, false);
  node->saved[kValue] = SavedVariable(a.value, false);
  node->saved[kMask] = SavedVariable(options.mask, false);
  node->saved[kBias] = SavedVariable(options.bias, false);
  node->is_causal = options.is_causal;
  node->scale = options.scale;
  return node;
}

ForwardResult forward(const AttentionArguments& arguments) {
  check(arguments);
  refuse_tangents(AttentionForward::kName, arguments);
  const bool is_differentiable = requires_grad(arguments);
  const auto node = is_differentiable ? make_backward_node(arguments) : nullptr;
  ForwardResult result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return AttentionForward::call(arguments);
  }();
  if (node) {
    const auto& [output, logsumexp, residual] = result;
    autograd::set_history(output, node);
    autograd::set_history(logsumexp, node);
    node->saved[kOutput] = SavedVariable(output, true);
    node->saved[kLogsumexp] = SavedVariable(logsumexp, true);
    node->saved[kResidual] = SavedVariable(residual, false);
  }
  return result;
}

// Differentiating the gradients once more raises when it is done, so that create_graph=True alone
// does no harm.
void refuse_second_derivative(const BackwardArguments& arguments, const BackwardResult& result) {
  const auto node = make_node<autograd::Error>(
      std::string(AttentionBackward::kName) +
      ": double backward of the fused operator is not available yet. "
      "torch.nn.functional.scaled_dot_product_attention under "
      "torch.nn.attention.sdpa_kernel(SDPBackend.MATH) can be differentiated twice.");
  for_each_tensor(arguments, [&](const Tensor& tensor) {
    if (tensor.requires_grad()) node->add_next_edge(autograd::impl::gradient_edge(tensor));
  });
  std::apply([&](const auto&... grads) { (autograd::set_history(grads, node), ...); }, result);
}

BackwardResult backward(const BackwardArguments& arguments) {
  check(arguments);
  refuse_tangents(AttentionBackward::kName, arguments);
  const BackwardResult result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return AttentionBackward::call(arguments);
  }();
  if (requires_grad(arguments)) refuse_second_derivative(arguments, result);
  return result;
}

}  // namespace
}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, Autograd, m) {
  using namespace torch_ext::ops;
  m.impl("attention_forward", AttentionForward::kernel<forward>);
  m.impl("attention_backward", AttentionBackward::kernel<backward>);
}
