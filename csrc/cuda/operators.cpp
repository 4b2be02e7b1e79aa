#include "cuda/operators.h"

#include "cuda/dtypes.h"

namespace torch_ext::cuda {
namespace {

// Calls use(E{}) for the type that `dtype` names.
template <class Use>
auto with_element(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::Float64:
      return use(double{});
    case DType::Float32:
      return use(float{});
    case DType::BFloat16:
      return use(BFloat16{});
    default:
      return use(Float16{});
  }
}

}  // namespace

int64_t forward_workspace(const ForwardProblem& p) {
  return with_element(p.query.dtype, [&](auto e) { return forward_workspace<decltype(e)>(p); });
}
void forward(const ForwardProblem& p, const Launch& launch) {
  with_element(p.query.dtype, [&](auto e) { forward<decltype(e)>(p, launch); });
}

}  // namespace torch_ext::cuda
