// What this build refuses: devices without kernels. And which CUDA devices it was built for.
#include <torch/library.h>

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "ops/checks.h"

namespace torch_ext::ops {
namespace {

template <class Operator, class Arguments, class Result>
Result refuse_device(const Arguments& arguments) {
  check(arguments);
  std::optional<at::Device> device;
  for_each_tensor(arguments, [&](const Tensor& tensor) {
    if (!device) device = tensor.device();
  });
  TORCH_CHECK_NOT_IMPLEMENTED(!device->is_cuda(), Operator::kName,
                              ": this build of torch_ext has no CUDA kernels, since it was made "
                              "without nvcc, but got tensors on ",
                              *device);
  TORCH_CHECK_NOT_IMPLEMENTED(false, Operator::kName, ": torch_ext has no kernels for device ",
                              *device);
}

template <class Operator, class Arguments, class Result, class Fields>
void register_kernel(torch::Library& m, TypedOperator<Operator, Arguments, Result, Fields>) {
  m.impl(Operator::kName, Operator::template kernel<refuse_device<Operator, Arguments, Result>>);
}

std::vector<std::string> cuda_architectures() {
  std::istringstream names(TORCH_EXT_CUDA_ARCHITECTURES);  // "sm_80 sm_90a"
  return {std::istream_iterator<std::string>(names), {}};
}

}  // namespace
}  // namespace torch_ext::ops

// A question about the library, not an operation on tensors.
TORCH_LIBRARY_FRAGMENT(torch_ext, m) {
  m.def("cuda_architectures() -> str[]", torch_ext::ops::cuda_architectures);
}

// Reached from every device that has no kernel of its own.
TORCH_LIBRARY_IMPL(torch_ext, CompositeExplicitAutograd, m) {
  using namespace torch_ext::ops;
  register_kernel(m, AttentionForward{});
  register_kernel(m, AttentionBackward{});
  register_kernel(m, AttentionTangent{});
  register_kernel(m, AttentionSecondOrder{});
  register_kernel(m, DropoutMask{});
}
