# Which kernels there are, and for which types: cmake/cuda.cmake says how to read a line.

set(dtypes float double BFloat16 Float16)

add_cuda_instantiations(
  forward cuda/forward/launch.h
  "int64_t forward_workspace<@dtype@>(const ForwardProblem&);
template void forward<@dtype@>(const ForwardProblem&, const Launch&)" ${dtypes})
add_cuda_instantiations(
  backward cuda/backward/launch.h
  "int64_t backward_workspace<@dtype@>(const BackwardProblem&);
template void backward<@dtype@>(const BackwardProblem&, const Launch&)" ${dtypes})
add_cuda_instantiations(
  second_order cuda/second_order/launch.h
  "int64_t second_order_workspace<@dtype@>(const SecondOrderProblem&);
template void second_order<@dtype@>(const SecondOrderProblem&, const Launch&)" ${dtypes})
add_cuda_instantiations(dropout_mask cuda/dropout_mask/dropout_mask.h
                        "void dropout_mask<@dtype@>(const DropoutMaskProblem&, const Stream&)" bool)
add_cuda_instantiations(
  hopper_forward cuda/hopper/forward/launch.h
  "bool hopper::forward_for<@dtype@, @size@>(const ForwardProblem&, const Launch&)" BFloat16 Float16
  SIZES 64 128 256 ARCHITECTURES 90a)
add_cuda_instantiations(
  hopper_backward cuda/hopper/backward/launch.h
  "bool hopper::backward_for<@dtype@, @size@>(const BackwardProblem&, const Launch&)" BFloat16
  Float16 SIZES 64 128 256 ARCHITECTURES 90a)
