# Which kernels there are, and for which types: cmake/cuda.cmake says how to read a line.
add_cuda_instantiations(dropout_mask cuda/dropout_mask/dropout_mask.h
                        "void dropout_mask<@dtype@>(const DropoutMaskProblem&, const Stream&)" bool)
