#include "cuda/hopper/forward.h"

#include "cuda/hopper/serves.h"

namespace torch_ext::cuda::hopper {

#ifdef TORCH_EXT_HAVE_SM_90A

namespace {

template <class E>
bool forward_of(const ForwardProblem& p, const Stream& stream) {
  if (p.head_size == 64) return forward_for<E, 64>(p, stream);
  if (p.head_size == 128) return forward_for<E, 128>(p, stream);
  return forward_for<E, 256>(p, stream);
}

}  // namespace

bool forward(const ForwardProblem& p, const Stream& stream) {
  if (!serves(p)) return false;
  return p.query.dtype == DType::BFloat16 ? forward_of<BFloat16>(p, stream)
                                          : forward_of<Float16>(p, stream);
}

#else

bool forward(const ForwardProblem&, const Stream&) { return false; }

#endif

}  // namespace torch_ext::cuda::hopper
