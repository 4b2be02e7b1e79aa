#include "cuda/operators.h"

#include <algorithm>

#include "cuda/dtypes.h"
#include "cuda/hopper/operators.h"

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

SecondOrderProblem without_gradients(const TangentProblem& p) {
  SecondOrderProblem x{};
  static_cast<Problem&>(x) = p;
  x.output = p.output;
  x.logsumexp = p.logsumexp;
  x.logsumexp_residual = p.logsumexp_residual;
  x.direction = p.direction;
  x.output_tangent = p.output_tangent;
  x.logsumexp_tangent = p.logsumexp_tangent;
  return x;
}

}  // namespace

int64_t forward_workspace(const ForwardProblem& p) {
  return with_element(p.query.dtype, [&](auto e) { return forward_workspace<decltype(e)>(p); });
}
int64_t backward_workspace(const BackwardProblem& p) {
  // Which kernels run depends on the device too.
  return std::max(hopper::backward_workspace(p), with_element(p.query.dtype, [&](auto e) {
                    return backward_workspace<decltype(e)>(p);
                  }));
}
int64_t tangent_workspace(const TangentProblem& p) {
  return second_order_workspace(without_gradients(p));
}
int64_t second_order_workspace(const SecondOrderProblem& p) {
  return with_element(p.query.dtype,
                      [&](auto e) { return second_order_workspace<decltype(e)>(p); });
}

void forward(const ForwardProblem& p, const Launch& launch) {
  if (hopper::forward(p, launch)) return;
  with_element(p.query.dtype, [&](auto e) { forward<decltype(e)>(p, launch); });
}
void backward(const BackwardProblem& p, const Launch& launch) {
  if (hopper::backward(p, launch)) return;
  with_element(p.query.dtype, [&](auto e) { backward<decltype(e)>(p, launch); });
}
void tangent(const TangentProblem& p, const Launch& launch) {
  second_order(without_gradients(p), launch);
}
void second_order(const SecondOrderProblem& p, const Launch& launch) {
  with_element(p.query.dtype, [&](auto e) { second_order<decltype(e)>(p, launch); });
}

}  // namespace torch_ext::cuda
