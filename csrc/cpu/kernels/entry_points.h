// What one ISA level exports. Everything else in kernels/ has internal linkage.
#pragma once

#include "attention/problem.h"

namespace torch_ext::cpu {

#define TORCH_EXT_DECLARE_LEVEL(level)          \
  namespace level {                             \
  void forward(const ForwardProblem&);          \
  void backward(const BackwardProblem&);        \
  void tangent(const TangentProblem&);          \
  void second_order(const SecondOrderProblem&); \
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
