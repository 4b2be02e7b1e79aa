# Which kernels there are, and for which types: cmake/cuda.cmake says how to read a line.
