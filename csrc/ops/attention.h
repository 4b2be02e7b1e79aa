// The operators as C++ sees them: their arguments as structs, and typed calls through the
// dispatcher.
//
// Each argument list is written once, as the fields of a struct and the order in which the schema
// has them. Kernels take that struct: register `AttentionForward::kernel<function>`, call
// `AttentionForward::call`.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <optional>
#include <tuple>
#include <type_traits>

namespace torch_ext::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Options {
  OptionalTensor mask, bias;
  bool is_causal = false;
  std::optional<double> scale;  // 1/√D when absent
};

struct AttentionArguments {
  Tensor query, key, value;
  Options options;

  auto in_schema_order() const {
    return std::tie(query, key, value, options.mask, options.bias, options.is_causal,
                    options.scale);
  }
};

struct BackwardArguments {
  OptionalTensor grad_output, grad_logsumexp;
  Tensor query, key, value, output, logsumexp, logsumexp_residual;
  Options options;
  std::array<bool, 4> output_mask = {true, true, true, true};  // query, key, value, bias

  auto in_schema_order() const {
    return std::tie(grad_output, grad_logsumexp, query, key, value, output, logsumexp,
                    logsumexp_residual, options.mask, options.bias, options.is_causal,
                    options.scale, output_mask);
  }
};

struct WeightsArguments {
  Tensor query, key;
  Options options;
  OptionalTensor rows;

  auto in_schema_order() const {
    return std::tie(query, key, options.mask, options.bias, options.is_causal, options.scale, rows);
  }
};

using ForwardResult = std::tuple<Tensor, Tensor, Tensor>;           // output, logsumexp, residual
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of query, key, value, bias

// What an optional tensor holds; undefined when it is absent.
inline Tensor value_or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }
inline OptionalTensor absent_if_undefined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Calls visit(tensor) for each tensor among the arguments that is there.
template <class Arguments, class Visit>
void for_each_tensor(const Arguments& arguments, Visit visit) {
  const auto visit_field = [&](const auto& field) {
    using Field = std::decay_t<decltype(field)>;
    if constexpr (std::is_same_v<Field, Tensor> || std::is_same_v<Field, OptionalTensor>) {
      const OptionalTensor tensor = field;
      if (tensor.has_value() && tensor->defined()) visit(*tensor);
    }
  };
  std::apply([&](const auto&... fields) { (visit_field(fields), ...); },
             arguments.in_schema_order());
}

// How the dispatcher passes a field: tensors by reference, the rest by value.
template <class Field>
using Parameter = std::conditional_t<std::is_trivially_copyable_v<Field>, Field, const Field&>;

template <class Operator, class Arguments, class Result,
          class Fields = decltype(std::declval<const Arguments&>().in_schema_order())>
struct TypedOperator;

template <class Operator, class Arguments, class Result, class... Fields>
struct TypedOperator<Operator, Arguments, Result, std::tuple<const Fields&...>> {
  static Result call(const Arguments& arguments) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow(Operator::kName, "")
                                   .template typed<Result(Parameter<Fields>...)>();
    return std::apply([](const auto&... fields) { return handle.call(fields...); },
                      arguments.in_schema_order());
  }

  // `implementation` with the flat argument list that the dispatcher wants.
  template <Result (*implementation)(const Arguments&)>
  static Result kernel(Parameter<Fields>... fields) {
    return implementation(Arguments{fields...});
  }
};

struct Attention : TypedOperator<Attention, AttentionArguments, Tensor> {
  static constexpr const char* kName = "torch_ext::attention";
};
struct AttentionForward : TypedOperator<AttentionForward, AttentionArguments, ForwardResult> {
  static constexpr const char* kName = "torch_ext::attention_forward";
};
struct AttentionBackward : TypedOperator<AttentionBackward, BackwardArguments, BackwardResult> {
  static constexpr const char* kName = "torch_ext::attention_backward";
};
struct AttentionWeights : TypedOperator<AttentionWeights, WeightsArguments, Tensor> {
  static constexpr const char* kName = "torch_ext::attention_weights";
};

}  // namespace torch_ext::ops
