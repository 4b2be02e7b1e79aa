// Hopper's matrix instructions: a warpgroup (four warps, from a multiple of four on) multiplies
// 64 x 16 by 16 x N, asynchronously, with the right operand in shared memory.
//
// Accumulators and a left operand in registers lie as those of multiply_add_16x8x16 do (matrix.h),
// warp w having rows 16 w … 16 w + 15 and c[4 n … 4 n + 3] belonging to columns 8 n … 8 n + 7.
//
// Order: begin_products(); any number of products; commit_products(); wait_for_products. Until
// then the products' registers must not be touched, nor may what they read be overwritten.
// Products into the same accumulators follow one another.
#pragma once

#include <type_traits>

#include "cuda/primitives/hopper_barrier.h"
#include "cuda/primitives/hopper_descriptor.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda {

// After what was done with the registers, before products that use them.
TORCH_EXT_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// C = 0, before any products are begun: while some are under way the compiler must not put other
// accumulators in place.
template <int kCount>
TORCH_EXT_DEVICE void clear_accumulators(float (&c)[kCount]) {
  TORCH_EXT_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("mov.f32 %0, 0f00000000;" : "=f"(c[i])::"memory");
}
// Makes one group of the products since the last call.
TORCH_EXT_DEVICE void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for all groups except the kPending latest; `c` are the accumulators that are then valid.
template <int kPending, int kCount>
TORCH_EXT_DEVICE void wait_for_products(float (&c)[kCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  // The compiler may not read them any earlier.
  TORCH_EXT_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// multiply_add<E>(c, a, b, accumulate): C (64 x N) = A (64 x 16) B (16 x N) + (accumulate ? C : 0),
// with N = 2 kCount of c.
//   a descriptor: A is 64 rows, B is N rows, both row-major: Q Kᵀ
//   a registers:  B is 16 rows of N columns, transposed: P V
#define TORCH_EXT_N10(t) \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define TORCH_EXT_N30 TORCH_EXT_N10() "," TORCH_EXT_N10(1) "," TORCH_EXT_N10(2)
#define TORCH_EXT_N40 TORCH_EXT_N30 "," TORCH_EXT_N10(3)
#define TORCH_EXT_N80 \
  TORCH_EXT_N40 "," TORCH_EXT_N10(4) "," TORCH_EXT_N10(5) "," TORCH_EXT_N10(6) "," TORCH_EXT_N10(7)
#define TORCH_EXT_NAMES_32 TORCH_EXT_N30 ",%30,%31"
#define TORCH_EXT_NAMES_40 TORCH_EXT_N40
#define TORCH_EXT_NAMES_64 \
  TORCH_EXT_N40 "," TORCH_EXT_N10(4) "," TORCH_EXT_N10(5) ",%60,%61,%62,%63"
#define TORCH_EXT_NAMES_88 TORCH_EXT_N80 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define TORCH_EXT_NAMES_128                                                                        \
  TORCH_EXT_N80 "," TORCH_EXT_N10(8) "," TORCH_EXT_N10(9) "," TORCH_EXT_N10(10) "," TORCH_EXT_N10( \
      11) ",%120,%121,%122,%123,%124,%125,%126,%127"

#define TORCH_EXT_C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define TORCH_EXT_C8(i) TORCH_EXT_C4(i), TORCH_EXT_C4(i + 4)
#define TORCH_EXT_C32(i) \
  TORCH_EXT_C8(i), TORCH_EXT_C8(i + 8), TORCH_EXT_C8(i + 16), TORCH_EXT_C8(i + 24)
#define TORCH_EXT_REGISTERS_32 TORCH_EXT_C32(0)
#define TORCH_EXT_REGISTERS_40 TORCH_EXT_C32(0), TORCH_EXT_C8(32)
#define TORCH_EXT_REGISTERS_64 TORCH_EXT_C32(0), TORCH_EXT_C32(32)
#define TORCH_EXT_REGISTERS_88 \
  TORCH_EXT_REGISTERS_64, TORCH_EXT_C8(64), TORCH_EXT_C8(72), TORCH_EXT_C8(80)
#define TORCH_EXT_REGISTERS_128 TORCH_EXT_REGISTERS_64, TORCH_EXT_C32(64), TORCH_EXT_C32(96)

// The instruction for N columns and `count` accumulators of elements `type`; the operands that
// follow the accumulators have the numbers p, q …
#define TORCH_EXT_PRODUCT_SHARED(n, count, type, p, q, r)                                     \
  asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %" #r                      \
               ", 0;\n"                                                                       \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                \
               " {" TORCH_EXT_NAMES_##count "}, %" #p ", %" #q ", accumulate, 1, 1, 0, 0;\n}" \
               : TORCH_EXT_REGISTERS_##count                                                  \
               : "l"(a.bits), "l"(b.bits), "r"(static_cast<int>(accumulate)))
#define TORCH_EXT_PRODUCT_REGISTERS(n, count, type, p0, p1, p2, p3, q, r)                       \
  asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %" #r                        \
               ", 0;\n"                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                  \
               " {" TORCH_EXT_NAMES_##count "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #q \
                                            ", accumulate, 1, 1, 1;\n}"                         \
               : TORCH_EXT_REGISTERS_##count                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits),                       \
                 "r"(static_cast<int>(accumulate)))

#define TORCH_EXT_DEFINE_SHARED(n, count, p, q, r)                                              \
  template <class E>                                                                            \
  TORCH_EXT_DEVICE void multiply_add(float (&c)[count], MatrixDescriptor a, MatrixDescriptor b, \
                                     bool accumulate) {                                         \
    if constexpr (std::is_same_v<E, BFloat16>) {                                                \
      TORCH_EXT_PRODUCT_SHARED(n, count, "bf16", p, q, r);                                      \
    } else {                                                                                    \
      static_assert(std::is_same_v<E, Float16>);                                                \
      TORCH_EXT_PRODUCT_SHARED(n, count, "f16", p, q, r);                                       \
    }                                                                                           \
  }
#define TORCH_EXT_DEFINE_REGISTERS(n, count, p0, p1, p2, p3, q, r)              \
  template <class E>                                                            \
  TORCH_EXT_DEVICE void multiply_add(float (&c)[count], const uint32_t (&a)[4], \
                                     MatrixDescriptor b, bool accumulate) {     \
    if constexpr (std::is_same_v<E, BFloat16>) {                                \
      TORCH_EXT_PRODUCT_REGISTERS(n, count, "bf16", p0, p1, p2, p3, q, r);      \
    } else {                                                                    \
      static_assert(std::is_same_v<E, Float16>);                                \
      TORCH_EXT_PRODUCT_REGISTERS(n, count, "f16", p0, p1, p2, p3, q, r);       \
    }                                                                           \
  }

TORCH_EXT_DEFINE_SHARED(64, 32, 32, 33, 34)
TORCH_EXT_DEFINE_SHARED(80, 40, 40, 41, 42)
TORCH_EXT_DEFINE_SHARED(128, 64, 64, 65, 66)
TORCH_EXT_DEFINE_SHARED(176, 88, 88, 89, 90)
TORCH_EXT_DEFINE_REGISTERS(64, 32, 32, 33, 34, 35, 36, 37)
TORCH_EXT_DEFINE_REGISTERS(128, 64, 64, 65, 66, 67, 68, 69)
TORCH_EXT_DEFINE_REGISTERS(256, 128, 128, 129, 130, 131, 132, 133)

}  // namespace torch_ext::cuda
