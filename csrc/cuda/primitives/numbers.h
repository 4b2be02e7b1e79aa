// The arithmetic of stored elements: conversions, and functions with an instruction of their own.
#pragma once

#include <type_traits>

#include "cuda/primitives/thread.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda {

TORCH_EXT_DEVICE float to_float(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
TORCH_EXT_DEVICE float to_float(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
TORCH_EXT_DEVICE float to_float(float x) { return x; }
TORCH_EXT_DEVICE double to_float(double x) { return x; }

// Rounds to nearest, ties to even.
template <class E>
TORCH_EXT_DEVICE E from_float(float x) {
  E y;
  if constexpr (std::is_same_v<E, BFloat16>) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  } else if constexpr (std::is_same_v<E, Float16>) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  } else {
    y = x;
  }
  return y;
}
template <class E>
TORCH_EXT_DEVICE E from_float(double x) {
  static_assert(std::is_same_v<E, double>);
  return x;
}

// Two rounded elements in one register, `low` in the lower half.
template <class E>
TORCH_EXT_DEVICE uint32_t pack(float low, float high) {
  uint32_t y;
  if constexpr (std::is_same_v<E, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  } else {
    static_assert(std::is_same_v<E, Float16>);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  }
  return y;
}

// 2^x, with an error of two units in the last place; subnormal arguments and results become 0.
TORCH_EXT_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace torch_ext::cuda
