// The elements of a tile product from single terms, and their arithmetic written out.
#pragma once

#include <cmath>
#include <type_traits>

#include "../helpers.h"
#include "cpu/kernels/tile/pairs.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// `x` as it can be a term of E, and an element of kTerms<E> of them.
template <class E>
struct Terms {
  static E rounded(double x) { return static_cast<E>(x); }
  static E element(const E* terms, int64_t) { return *terms; }
  static E fma(E a, E b, E c) { return std::fma(a, b, c); }
};

#ifdef __AVX512BF16__
template <>
struct Terms<Pair> {
  static float rounded(double x) {
    return static_cast<float>(test::decode_bfloat16(test::encode16(x, 8)));
  }
  // From terms that lie `step` apart; the second is 0 where `step` is.
  static Pair element(const float* terms, int64_t step) {
    const uint32_t high = step == 0 ? 0 : test::encode16(static_cast<double>(terms[step]), 8);
    return {test::encode16(static_cast<double>(*terms), 8) | high << 16};
  }
  // The instruction takes the second term first.
  static float fma(Pair a, Pair b, float c) {
    c = std::fma(bits_to_float(a.bits & 0xffff0000), bits_to_float(b.bits & 0xffff0000), c);
    return std::fma(bits_to_float(a.bits << 16), bits_to_float(b.bits << 16), c);
  }
};
using AllElements = testing::Types<float, double, Pair>;
#else
using AllElements = testing::Types<float, double>;
#endif

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
