// What this build refuses: devices without kernels, and vmap.
#include <torch/library.h>

#include "ops/checks.h"

namespace torch_ext::ops {
namespace {

template <class Operator, class Result, class Arguments>
Result refuse_device(const Arguments& arguments) {
  check(arguments);
  const at::Device device = arguments.query.device();
  TORCH_CHECK_NOT_IMPLEMENTED(!device.is_cuda(), Operator::kName,
                              ": this build of torch_ext has no CUDA kernels, but got query on ",
                              device);
  TORCH_CHECK_NOT_IMPLEMENTED(false, Operator::kName, ": torch_ext has no kernels for device ",
                              device);
}

void refuse_vmap(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.operator_name().name,
                              ": vmap is not available yet. Give the mapped dimension to the "
                              "operator as one more batch dimension.");
}

void refuse_vmap_in(torch::Library& m) {
  for (const char* name : {"attention_forward", "attention_backward"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_vmap>());
  }
}

}  // namespace
}  // namespace torch_ext::ops

// Reached from every device that has no kernel of its own.
TORCH_LIBRARY_IMPL(torch_ext, CompositeExplicitAutograd, m) {
  using namespace torch_ext::ops;
  m.impl(
      "attention_forward",
      AttentionForward::kernel<refuse_device<AttentionForward, ForwardResult, AttentionArguments>>);
  m.impl("attention_backward",
         AttentionBackward::kernel<
             refuse_device<AttentionBackward, BackwardResult, BackwardArguments>>);
}

// torch.func.vmap, and the older vmap behind torch.autograd.grad(is_grads_batched=True).
TORCH_LIBRARY_IMPL(torch_ext, FuncTorchBatched, m) { torch_ext::ops::refuse_vmap_in(m); }
TORCH_LIBRARY_IMPL(torch_ext, Batched, m) { torch_ext::ops::refuse_vmap_in(m); }
