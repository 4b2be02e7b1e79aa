#include "cuda/hopper/operators.h"

#include <type_traits>

#include "cuda/hopper/backward/row_statistics.h"
#include "cuda/hopper/serves.h"

namespace torch_ext::cuda::hopper {

int64_t backward_workspace(const BackwardProblem& p) { return serves(p) ? statistics_bytes(p) : 0; }

#ifdef TORCH_EXT_HAVE_SM_90A

namespace {

// run(E{}, head size), for what serves.h says yes to.
template <class Run>
bool with_kernel(const Problem& p, const Run& run) {
  const auto with_size = [&](auto e) {
    using std::integral_constant;
    if (p.head_size == 64) return run(e, integral_constant<int, 64>());
    if (p.head_size == 128) return run(e, integral_constant<int, 128>());
    return run(e, integral_constant<int, 256>());
  };
  return p.query.dtype == DType::BFloat16 ? with_size(BFloat16{}) : with_size(Float16{});
}

}  // namespace

bool forward(const ForwardProblem& p, const Launch& launch) {
  return serves(p) && with_kernel(p, [&](auto e, auto head_size) {
           return forward_for<decltype(e), head_size()>(p, launch);
         });
}
bool backward(const BackwardProblem& p, const Launch& launch) {
  return serves(p) && with_kernel(p, [&](auto e, auto head_size) {
           return backward_for<decltype(e), head_size()>(p, launch);
         });
}

#else

bool forward(const ForwardProblem&, const Launch&) { return false; }
bool backward(const BackwardProblem&, const Launch&) { return false; }

#endif

}  // namespace torch_ext::cuda::hopper
