// Autocast: query and key (and value) in the autocast type. `attention` needs nothing of its own,
// as it calls attention_forward; attention_weights must not let autocast into the operations it is
// made of.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/checks.h"

namespace torch_ext::ops {
namespace {

// A bias, slopes or a sink that do not go with the type that query now has take that type.
void cast_to_go_with(at::ScalarType query_type, ScoreOptions& options) {
  for (OptionalTensor* option : {&options.bias, &options.slopes, &options.sink}) {
    const Tensor& tensor = value_or_undefined(*option);
    if (!tensor.defined() || !at::isFloatingType(tensor.scalar_type())) continue;
    if (!goes_with_query(tensor.scalar_type(), query_type)) *option = tensor.to(query_type);
  }
}

template <at::DeviceType device>
struct Autocast {
  static constexpr at::DispatchKey kKey =
      device == at::kCPU ? at::DispatchKey::AutocastCPU : at::DispatchKey::AutocastCUDA;

  static Tensor cast(const Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  }

  static ForwardResult forward(const AttentionArguments& a) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    AttentionArguments cast_arguments{cast(a.query), cast(a.key), cast(a.value), a.options};
    cast_to_go_with(cast_arguments.query.scalar_type(), cast_arguments.options);
    return AttentionForward::call(cast_arguments);
  }

  static Tensor weights(const WeightsArguments& a) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    WeightsArguments cast_arguments{cast(a.query), cast(a.key), a.options, a.rows};
    cast_to_go_with(cast_arguments.query.scalar_type(), cast_arguments.options);
    return AttentionWeights::call(cast_arguments);
  }

  static void register_kernels(torch::Library& m) {
    m.impl("attention_forward", AttentionForward::kernel<forward>);
    m.impl("attention_weights", AttentionWeights::kernel<weights>);
  }
};

}  // namespace
}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, AutocastCPU, m) {
  torch_ext::ops::Autocast<at::kCPU>::register_kernels(m);
}
TORCH_LIBRARY_IMPL(torch_ext, AutocastCUDA, m) {
  torch_ext::ops::Autocast<at::kCUDA>::register_kernels(m);
}
