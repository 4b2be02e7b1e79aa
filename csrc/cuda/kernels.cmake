# Which kernels there are, and for which types: cmake/cuda.cmake says how to read a line.

set(dtypes float double BFloat16 Float16)

add_cuda_instantiations(
  forward cuda/forward/launch.h
  "int64_t forward_workspace<@dtype@>(const ForwardProblem&);
template void forward<@dtype@>(const ForwardProblem&, const Launch&)" ${dtypes})
