// torch.vmap and torch.func: key FuncTorchBatched.
#include "ops/batching.h"

#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/DynamicLayer.h>

namespace torch_ext::ops {
namespace {

namespace functorch = at::functorch;

// The innermost transformation. Below it the key is off: wrappers that are left belong to others.
class FunctorchLevel {
 public:
  template <class Arguments>
  explicit FunctorchLevel(const Arguments&) : level_(innermost_level()) {}

  Unwrapped unwrap(const Tensor& tensor) const {
    const functorch::BatchedTensorImpl* batched = functorch::maybeGetBatchedImpl(tensor);
    if (batched == nullptr || batched->level() != level_) return {tensor, std::nullopt};
    return {batched->value(), batched->bdim()};
  }

  Tensor wrap(const Tensor& tensor) const { return functorch::makeBatched(tensor, 0, level_); }

 private:
  static int64_t innermost_level() {
    const std::optional<functorch::DynamicLayer> layer = functorch::maybeCurrentDynamicLayer();
    TORCH_CHECK(layer.has_value(), Attention::kName,
                ": expected tensors of vmap to be used only inside the function that is mapped");
    return layer->layerId();
  }

  int64_t level_;
  c10::impl::ExcludeDispatchKeyGuard below_vmap_{c10::DispatchKey::FuncTorchBatched};
};

}  // namespace
}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, FuncTorchBatched, m) {
  using namespace torch_ext::ops;
  register_batching<FunctorchLevel>(m);
}
