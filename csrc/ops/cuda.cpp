// The CUDA kernels: enqueued on the current stream of query's device.
//
// Torch is asked through the interface that all its devices share, and no CUDA header is used: so
// this file also builds against a torch without CUDA. Nothing waits for the device or reads its
// memory, so that all of it can be captured in a CUDA graph.
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "cuda/operators.h"
#include "ops/on_device.h"

namespace torch_ext::ops {
namespace {

class Cuda {
 public:
  explicit Cuda(const Tensor& tensor) : device_(tensor.device()), guard_(device_) {}

  void prepare(const Tensor&) const {}

  cuda::Stream stream() const {
    const c10::impl::VirtualGuardImpl devices(device_.type());
    return {device_.index(), devices.getStreamNativeHandle(devices.getStream(device_))};
  }

  void run(const ForwardProblem& problem) const {
    enqueue(problem, cuda::forward_workspace, cuda::forward);
  }
  void run(const BackwardProblem& problem) const {
    enqueue(problem, cuda::backward_workspace, cuda::backward);
  }
  void run(const TangentProblem& problem) const {
    enqueue(problem, cuda::tangent_workspace, cuda::tangent);
  }
  void run(const SecondOrderProblem& problem) const {
    enqueue(problem, cuda::second_order_workspace, cuda::second_order);
  }

 private:
  // The workspace may be freed at once: its memory is only reused by later work of this stream.
  template <class SomeProblem>
  void enqueue(const SomeProblem& problem, int64_t (*workspace_bytes)(const SomeProblem&),
               void (*launch)(const SomeProblem&, const cuda::Launch&)) const {
    const Tensor workspace =
        at::empty({workspace_bytes(problem)}, at::TensorOptions().device(device_).dtype(at::kByte));
    launch(problem, {stream(), workspace.mutable_data_ptr()});
  }

  at::Device device_;
  c10::DeviceGuard guard_;
};

Tensor dropout_mask(const DropoutMaskArguments& a) {
  check(a);
  const Cuda device(a.seed);
  const Tensor result = empty_results(a), seeds = a.seed.contiguous();
  cuda::dropout_mask<bool>(
      {seeds.const_data_ptr<int64_t>(), result.mutable_data_ptr<bool>(), seeds.numel(),
       a.heads.expect_int(), a.queries.expect_int(), a.keys.expect_int(), a.dropout_p},
      device.stream());
  return result;
}

}  // namespace
}  // namespace torch_ext::ops

TORCH_LIBRARY_IMPL(torch_ext, CUDA, m) {
  using namespace torch_ext::ops;
  register_operators<Cuda>(m);
  m.impl("_dropout_mask", DropoutMask::kernel<dropout_mask>);
}
