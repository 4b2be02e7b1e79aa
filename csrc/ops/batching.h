// vmap: the mapped dimension becomes one more leading dimension of the same operator.
//
// The rule is written once for the two kinds of vmap that PyTorch has. A `Level` is what they
// differ in: one mapped dimension of one call.
//   Level(arguments)   the level that this call has to deal with
//   unwrap(tensor)     the tensor without its wrapper, and where its mapped dimension is, if any
//   wrap(tensor)       the reverse, for a tensor whose mapped dimension is the first
// Everything here makes views. What is not mapped is expanded where its shape has to be that of
// others, with stride 0; what broadcasts stays as it is.
#pragma once

#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/checks.h"

namespace torch_ext::ops {

// A tensor, and which of its dimensions is mapped.
using Unwrapped = std::pair<Tensor, std::optional<int64_t>>;

template <class Level>
class Mapping {
 public:
  template <class Arguments>
  explicit Mapping(const Arguments& arguments) : level_(arguments) {
    for_each_tensor(arguments, [&](const Tensor& tensor) {
      const auto [unwrapped, dim] = level_.unwrap(tensor);
      if (dim) size_ = unwrapped.sym_size(*dim);
    });
  }

  // Whether any argument is mapped at this level.
  explicit operator bool() const { return size_.has_value(); }

  // Tensors that broadcast to `rank` dimensions become (B, 1, …, 1, own dimensions): rank + 1.
  template <class... Tensors>
  void map(int64_t rank, Tensors&... tensors) const {
    (map_one(rank, tensors), ...);
  }

  // The same for tensors of one shape that broadcast, unless none of them needs the dimension:
  // none is mapped, and there is no gradient of theirs that would be.
  template <class... Tensors>
  void map_broadcast(int64_t rank, bool has_gradient, Tensors&... tensors) const {
    if (has_gradient || (is_mapped(tensors) || ...)) map(rank, tensors...);
  }

  // A result without `inserted` dimensions of size 1 after the mapped one.
  Tensor wrap(Tensor result, int64_t inserted) const {
    if (!result.defined()) return result;
    for (int64_t i = 0; i < inserted; ++i) result = result.select(1, 0);
    return level_.wrap(result);
  }

 private:
  bool is_mapped(const OptionalTensor& tensor) const {
    return tensor && tensor->defined() && level_.unwrap(*tensor).second;
  }

  void map_one(int64_t rank, OptionalTensor& tensor) const {
    if (tensor && tensor->defined()) map_one(rank, *tensor);
  }

  void map_one(int64_t rank, Tensor& tensor) const {
    const int64_t inserted = rank - tensor.dim();
    const auto [unwrapped, dim] = level_.unwrap(tensor);
    tensor = dim ? unwrapped.movedim(*dim, 0) : unwrapped.unsqueeze(0);
    for (int64_t i = 0; i < inserted; ++i) tensor = tensor.unsqueeze(1);
    if (dim) return;
    std::vector<c10::SymInt> sizes = tensor.sym_sizes().vec();
    sizes[0] = *size_;
    tensor = tensor.expand_symint(sizes);
  }

  Level level_;
  std::optional<c10::SymInt> size_;  // B
};

template <class Arguments>
const Tensor& query_of(const Arguments& arguments) {
  if constexpr (requires { arguments.saved; }) {
    return arguments.saved.query;
  } else {
    return arguments.query;
  }
}

// Dimensions of query without the mapped one. A 2-D query gets one for its head: otherwise the
// mapped dimension would count heads, on which slopes and dropout depend.
template <class Arguments>
int64_t query_rank(const Arguments& arguments) {
  return std::max<int64_t>(query_of(arguments).dim(), 3);
}

// The arguments with the mapped dimension in front.
template <class Level, class Arguments>
Arguments with_mapped_dimension(const Mapping<Level>& mapping, Arguments a) {
  Tangents absent;
  Tangents& tangents = [&]() -> Tangents& {
    if constexpr (requires { a.tangents; }) {
      return a.tangents;
    } else {
      return absent;
    }
  }();
  const auto has_gradient = [&](size_t result) {
    if constexpr (requires { a.output_mask; }) {
      return a.output_mask[result];
    } else {
      return false;
    }
  };

  const int64_t rank = query_rank(a), rows = rank - 1, heads = rank - 2, batch = rank - 3;
  if constexpr (requires { a.saved; }) {
    mapping.map(rank, a.saved.query, a.saved.key, a.saved.value, a.saved.output);
    mapping.map(rows, a.saved.logsumexp, a.saved.logsumexp_residual);
  } else {
    mapping.map(rank, a.query, a.key, a.value);
  }
  mapping.map(rank, tangents.query, tangents.key, tangents.value);
  if constexpr (requires { a.grad_output; }) {
    mapping.map(rank, a.grad_output);
    mapping.map(rows, a.grad_logsumexp);
  }
  mapping.map_broadcast(rank, false, a.options.mask);
  mapping.map_broadcast(rank, has_gradient(3), a.options.bias, tangents.bias);
  mapping.map_broadcast(heads, has_gradient(4), a.options.slopes, tangents.slopes);
  mapping.map_broadcast(heads, has_gradient(5), a.options.sink, tangents.sink);
  mapping.map_broadcast(batch, false, a.options.seed);
  return a;
}

// How many dimensions of size 1 the rule above gave to that which a result is like.
template <size_t results, class Arguments>
std::array<int64_t, results> inserted_dimensions(const Arguments& a) {
  const int64_t rank = query_rank(a);
  std::array<int64_t, results> inserted;
  inserted.fill(rank - query_of(a).dim());
  if constexpr (requires { a.output_mask; }) {
    const auto missing = [](int64_t dims, const OptionalTensor& tensor) {
      return tensor && tensor->defined() ? dims - tensor->dim() : 0;
    };
    inserted[3] = missing(rank, a.options.bias);
    inserted[4] = missing(rank - 2, a.options.slopes);
    inserted[5] = missing(rank - 2, a.options.sink);
  }
  return inserted;
}

template <class Level, class Operator, class Arguments, class Result>
Result batched(const Arguments& arguments) {
  const Mapping<Level> mapping(arguments);
  if (!mapping) return Operator::call(arguments);
  check(arguments);  // errors show shapes without the mapped dimension
  Result results = Operator::call(with_mapped_dimension(mapping, arguments));
  const auto inserted = inserted_dimensions<std::tuple_size_v<Result>>(arguments);
  size_t i = 0;
  std::apply([&](auto&... result) { ((result = mapping.wrap(result, inserted[i++])), ...); },
             results);
  return results;
}

template <class Level>
Tensor batched_dropout_mask(const DropoutMaskArguments& arguments) {
  const Mapping<Level> mapping(arguments);
  if (!mapping) return DropoutMask::call(arguments);
  DropoutMaskArguments mapped = arguments;
  mapping.map(arguments.seed.dim(), mapped.seed);
  return mapping.wrap(DropoutMask::call(mapped), 0);
}

template <class Level>
void register_batching(torch::Library& m) {
  m.impl("attention_forward", AttentionForward::kernel<batched<Level, AttentionForward>>);
  m.impl("attention_backward", AttentionBackward::kernel<batched<Level, AttentionBackward>>);
  m.impl("attention_tangent", AttentionTangent::kernel<batched<Level, AttentionTangent>>);
  m.impl("attention_second_order",
         AttentionSecondOrder::kernel<batched<Level, AttentionSecondOrder>>);
  m.impl("_dropout_mask", DropoutMask::kernel<batched_dropout_mask<Level>>);
}

}  // namespace torch_ext::ops
