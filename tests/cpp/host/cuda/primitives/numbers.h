// csrc/cuda/primitives/numbers.h on the host.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>

#include "cuda/primitives/thread.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda {

TORCH_EXT_DEVICE float to_float(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
TORCH_EXT_DEVICE float to_float(Float16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, magnitude = x.bits & 0x7fffu;
  // The exponents' biases differ by 112; those of infinity and NaN are the largest in both.
  const float y = magnitude < 0x7c00 ? std::bit_cast<float>(magnitude << 13) * 0x1p112f
                                     : std::bit_cast<float>(magnitude << 13 | 0x7f800000);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(y) | sign);
}
TORCH_EXT_DEVICE float to_float(float x) { return x; }
TORCH_EXT_DEVICE double to_float(double x) { return x; }

template <class E>
TORCH_EXT_DEVICE E from_float(float x) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    if (std::isnan(x)) return {0x7fff};
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else if constexpr (std::is_same_v<E, Float16>) {
    if (std::isnan(x)) return {0x7fff};
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float magnitude = std::fabs(x);
    if (magnitude >= 65520) return {static_cast<uint16_t>(sign | 0x7c00)};
    // Below 2^-14 the codes count 2^-24; above, a float's bits less the 13 that are rounded off.
    if (magnitude < 0x1p-14f) {
      return {static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(magnitude * 0x1p24f)))};
    }
    const uint32_t bits = std::bit_cast<uint32_t>(magnitude) - (112u << 23);
    return {static_cast<uint16_t>(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13)};
  } else {
    return x;
  }
}
template <class E>
TORCH_EXT_DEVICE E from_float(double x) {
  static_assert(std::is_same_v<E, double>);
  return x;
}

template <class E>
TORCH_EXT_DEVICE uint32_t pack(float low, float high) {
  return from_float<E>(low).bits | uint32_t{from_float<E>(high).bits} << 16;
}

TORCH_EXT_DEVICE float exp2_fast(float x) {
  constexpr float kSmallest = 0x1p-126f;  // normal number
  const float y = std::exp2(std::fabs(x) < kSmallest ? 0 : x);
  return y < kSmallest ? 0 : y;
}

}  // namespace torch_ext::cuda
