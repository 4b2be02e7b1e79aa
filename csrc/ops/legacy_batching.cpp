// The older vmap, behind torch.autograd.grad(is_grads_batched=True) and gradcheck: key Batched.
#include <ATen/LegacyBatchedTensorImpl.h>

#include <algorithm>

#include "ops/batching.h"

namespace torch_ext::ops {
namespace {

// The highest level of any argument. A wrapper holds all mapped dimensions of its tensor; the call
// with one of them unwrapped comes back here for the next.
class LegacyLevel {
 public:
  template <class Arguments>
  explicit LegacyLevel(const Arguments& arguments) {
    for_each_tensor(arguments, [&](const Tensor& tensor) {
      const at::BatchedTensorImpl* batched = at::maybeGetBatchedImpl(tensor);
      if (batched != nullptr) level_ = std::max(level_, batched->bdims().back().level());
    });
  }

  Unwrapped unwrap(const Tensor& tensor) const {
    const at::BatchedTensorImpl* batched = at::maybeGetBatchedImpl(tensor);
    if (batched == nullptr || batched->bdims().back().level() != level_) {
      return {tensor, std::nullopt};
    }
    const int64_t mapped = batched->bdims().back().dim();
    const at::BatchDimsRef lower = batched->bdims().slice(0, batched->bdims().size() - 1);
    if (lower.empty()) return {batched->value(), mapped};
    // Dimensions of lower levels do not count: their wrapper hides them.
    const int64_t hidden = std::count_if(
        lower.begin(), lower.end(), [&](const at::BatchDim& dim) { return dim.dim() < mapped; });
    return {at::makeBatched(batched->value(), {lower.begin(), lower.end()}), mapped - hidden};
  }

  Tensor wrap(const Tensor& tensor) const { return at::addBatchDim(tensor, level_, 0); }

 private:
  int64_t level_ = -1;
};

}  // namespace
}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, Batched, m) {
  using namespace torch_ext::ops;
  register_batching<LegacyLevel>(m);
}
