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

// Options of the scores, in the order of every schema.
struct ScoreOptions {
  OptionalTensor mask, bias;
  bool is_causal = false;
  std::optional<c10::SymInt> window_left, window_right;  // unlimited when absent
  bool bottom_right = false;                             // the last query lies beside the last key
  std::optional<double> scale;                           // 1/√D when absent
  std::optional<double> softcap;
  OptionalTensor slopes, sink;

  auto in_schema_order() const {
    return std::tie(mask, bias, is_causal, window_left, window_right, bottom_right, scale, softcap,
                    slopes, sink);
  }
};

struct Options : ScoreOptions {
  double dropout_p = 0;
  OptionalTensor seed;  // wanted where dropout_p > 0

  auto in_schema_order() const {
    return std::tuple_cat(ScoreOptions::in_schema_order(), std::tie(dropout_p, seed));
  }
};

// One direction; absent = zero.
struct Tangents {
  OptionalTensor query, key, value, bias, slopes, sink;

  auto in_schema_order() const { return std::tie(query, key, value, bias, slopes, sink); }
};

// The inputs, and what attention_forward made of them.
struct Saved {
  Tensor query, key, value, output, logsumexp, logsumexp_residual;

  auto in_schema_order() const {
    return std::tie(query, key, value, output, logsumexp, logsumexp_residual);
  }
};

struct AttentionArguments {
  Tensor query, key, value;
  Options options;

  auto in_schema_order() const {
    return std::tuple_cat(std::tie(query, key, value), options.in_schema_order());
  }
};

struct BackwardArguments {
  OptionalTensor grad_output, grad_logsumexp;
  Saved saved;
  Options options;
  // In the order of the results: query, key, value, bias, slopes, sink.
  std::array<bool, 6> output_mask = {true, true, true, true, true, true};

  auto in_schema_order() const {
    return std::tuple_cat(std::tie(grad_output, grad_logsumexp), saved.in_schema_order(),
                          options.in_schema_order(), std::tie(output_mask));
  }
};

struct TangentArguments {
  Tangents tangents;
  Saved saved;
  Options options;

  auto in_schema_order() const {
    return std::tuple_cat(tangents.in_schema_order(), saved.in_schema_order(),
                          options.in_schema_order());
  }
};

struct SecondOrderArguments {
  OptionalTensor grad_output, grad_logsumexp;
  Tangents tangents;
  Saved saved;
  Options options;
  // In the order of the results: as above, then grad_output and grad_logsumexp.
  std::array<bool, 8> output_mask = {true, true, true, true, true, true, true, true};

  auto in_schema_order() const {
    return std::tuple_cat(std::tie(grad_output, grad_logsumexp), tangents.in_schema_order(),
                          saved.in_schema_order(), options.in_schema_order(),
                          std::tie(output_mask));
  }
};

struct WeightsArguments {
  Tensor query, key;
  ScoreOptions options;
  OptionalTensor rows;

  auto in_schema_order() const {
    return std::tuple_cat(std::tie(query, key), options.in_schema_order(), std::tie(rows));
  }
};

struct DropoutMaskArguments {
  Tensor seed;
  c10::SymInt heads, queries, keys;
  double dropout_p = 0;

  auto in_schema_order() const { return std::tie(seed, heads, queries, keys, dropout_p); }
};

using ForwardResult = std::tuple<Tensor, Tensor, Tensor>;  // output, logsumexp, residual
// Of query, key, value, bias, slopes, sink.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using TangentResult = std::tuple<Tensor, Tensor>;  // output_tangent, logsumexp_tangent
using SecondOrderResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// What an optional tensor holds, by reference; undefined when it is absent.
inline const Tensor& value_or_undefined(const OptionalTensor& tensor) {
  static const Tensor undefined;
  return tensor.has_value() ? *tensor : undefined;
}
const Tensor& value_or_undefined(OptionalTensor&&) = delete;
inline OptionalTensor absent_if_undefined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

template <class Field>
constexpr bool kHoldsTensor =
    std::is_same_v<Field, Tensor> || std::is_same_v<Field, OptionalTensor>;

// Calls visit(tensor) for each tensor among the arguments that is there.
template <class Arguments, class Visit>
void for_each_tensor(const Arguments& arguments, Visit visit) {
  const auto visit_field = [&](const auto& field) {
    using Field = std::decay_t<decltype(field)>;
    if constexpr (std::is_same_v<Field, Tensor>) {
      if (field.defined()) visit(field);
    } else if constexpr (std::is_same_v<Field, OptionalTensor>) {
      if (field.has_value() && field->defined()) visit(*field);
    }
  };
  std::apply([&](const auto&... fields) { (visit_field(fields), ...); },
             arguments.in_schema_order());
}

template <class... Fields>
constexpr size_t count_tensors(const std::tuple<const Fields&...>*) {
  return (size_t{kHoldsTensor<Fields>} + ...);
}

// How many tensors the arguments have, absent ones included.
template <class Arguments>
constexpr size_t kTensorFields = count_tensors(
    static_cast<decltype(std::declval<const Arguments&>().in_schema_order())*>(nullptr));

// The arguments with map(field) in the place of each field, in order.
template <class Arguments, class Map>
Arguments map_fields(const Arguments& arguments, Map map) {
  return std::apply([&](const auto&... fields) { return Arguments{map(fields)...}; },
                    arguments.in_schema_order());
}

// The arguments with map(tensor) in the place of each tensor, in order. Absent tensors are mapped
// too, as undefined ones; an undefined result makes an optional tensor absent.
template <class Arguments, class Map>
Arguments map_tensors(const Arguments& arguments, Map map) {
  return map_fields(arguments, [&](const auto& field) {
    using Field = std::decay_t<decltype(field)>;
    if constexpr (std::is_same_v<Field, Tensor>) {
      return Tensor(map(field));
    } else if constexpr (std::is_same_v<Field, OptionalTensor>) {
      return absent_if_undefined(map(value_or_undefined(field)));
    } else {
      return field;
    }
  });
}

// None and an undefined tensor are both ways to say that an optional tensor is absent: here, None.
template <class Arguments>
Arguments without_undefined(const Arguments& arguments) {
  return map_tensors(arguments, [](const Tensor& tensor) { return tensor; });
}

// How the dispatcher passes a field: tensors by reference, the rest by value.
template <class Field>
using Parameter = std::conditional_t<kHoldsTensor<Field>, const Field&, Field>;

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

  // The same for one that changes its arguments.
  template <Result (*implementation)(Arguments)>
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
struct AttentionTangent : TypedOperator<AttentionTangent, TangentArguments, TangentResult> {
  static constexpr const char* kName = "torch_ext::attention_tangent";
};
struct AttentionSecondOrder
    : TypedOperator<AttentionSecondOrder, SecondOrderArguments, SecondOrderResult> {
  static constexpr const char* kName = "torch_ext::attention_second_order";
};
struct AttentionWeights : TypedOperator<AttentionWeights, WeightsArguments, Tensor> {
  static constexpr const char* kName = "torch_ext::attention_weights";
};
struct DropoutMask : TypedOperator<DropoutMask, DropoutMaskArguments, Tensor> {
  static constexpr const char* kName = "torch_ext::_dropout_mask";
};

}  // namespace torch_ext::ops
