// The CPU implementations, best first, and the choice between them.
#pragma once

#include "attention/problem.h"

namespace torch_ext::cpu {

struct Implementation {
  const char* name;  // "avx512_bf16", "avx512", "avx2", "reference": what TORCH_EXT_ISA may say
  bool (*is_supported)();
  void (*forward)(const ForwardProblem&);
  void (*backward)(const BackwardProblem&);
  void (*tangent)(const TangentProblem&);
  void (*second_order)(const SecondOrderProblem&);
};

// All of them, ordered best first; `count` receives how many.
const Implementation* implementations(int* count);

// The first supported one, or the one TORCH_EXT_ISA names. Decided once.
// Throws std::runtime_error when TORCH_EXT_ISA names none that this processor can run, and where
// choices() does.
const Implementation& implementation();

}  // namespace torch_ext::cpu
