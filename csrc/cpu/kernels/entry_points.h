// What one ISA level exports: the operators, and the path of few queries that forward and backward
// take. Everything else in kernels/ has internal linkage.
#pragma once

#include "attention/problem.h"

namespace torch_ext::cpu {

#define TORCH_EXT_DECLARE_LEVEL(level)               \
  namespace level {                                  \
  void forward(const ForwardProblem&);               \
  void backward(const BackwardProblem&);             \
  void tangent(const TangentProblem&);               \
  void second_order(const SecondOrderProblem&);      \
  void few_queries_forward(const ForwardProblem&);   \
  void few_queries_backward(const BackwardProblem&); \
  }
TORCH_EXT_DECLARE_LEVEL(avx2)
TORCH_EXT_DECLARE_LEVEL(avx512)
#undef TORCH_EXT_DECLARE_LEVEL

// bfloat16 alone.
namespace avx512_bf16 {
void forward(const ForwardProblem&);
void backward(const BackwardProblem&);
}  // namespace avx512_bf16

}  // namespace torch_ext::cpu
