#include "cpu/implementations.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "attention/reference.h"
#include "cpu/choices.h"
#include "cpu/isa.h"
#ifdef TORCH_EXT_HAVE_X86
#include "cpu/kernels/entry_points.h"
#endif

namespace torch_ext::cpu {
namespace {

#ifdef TORCH_EXT_HAVE_X86
// bfloat16 by its own instructions, what they do not serve as with AVX-512.
void forward_with_pairs(const ForwardProblem& p) {
  (p.query.dtype == DType::BFloat16 ? avx512_bf16::forward : avx512::forward)(p);
}
void backward_with_pairs(const BackwardProblem& p) {
  (p.query.dtype == DType::BFloat16 ? avx512_bf16::backward : avx512::backward)(p);
}
#endif

const Implementation kImplementations[] = {
#ifdef TORCH_EXT_HAVE_X86
    {"avx512_bf16", has_avx512_bf16, forward_with_pairs, backward_with_pairs, avx512::tangent,
     avx512::second_order},
    {"avx512", has_avx512, avx512::forward, avx512::backward, avx512::tangent,
     avx512::second_order},
    {"avx2", has_avx2, avx2::forward, avx2::backward, avx2::tangent, avx2::second_order},
#endif
    {"reference", [] { return true; }, reference_forward, reference_backward, reference_tangent,
     reference_second_order},
};

const Implementation& find_implementation() {
  choices();  // says at once where its variable is wrong
  const char* wanted = std::getenv("TORCH_EXT_ISA");
  std::string supported;
  for (const Implementation& implementation : kImplementations) {
    if (!implementation.is_supported()) continue;
    if (!wanted || !*wanted || std::strcmp(wanted, implementation.name) == 0) return implementation;
    supported += std::string(supported.empty() ? "" : ", ") + implementation.name;
  }
  throw std::runtime_error("torch_ext: expected TORCH_EXT_ISA to be one of " + supported +
                           " on this processor, but got '" + wanted + "'");
}

}  // namespace

const Implementation* implementations(int* count) {
  *count = sizeof(kImplementations) / sizeof(kImplementations[0]);
  return kImplementations;
}

const Implementation& implementation() {
  static const Implementation& chosen = find_implementation();
  return chosen;
}

}  // namespace torch_ext::cpu
