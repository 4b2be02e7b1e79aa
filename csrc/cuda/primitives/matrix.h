// Matrix instructions of a warp on 16-bit elements.
//
// Element (r, c) of an 8 x 8 matrix lies in lane 4 r + c / 2, in half c % 2 of one register.
// Of a product C (16 x 8) += A (16 x 16) B (16 x 8), with g = lane / 4 and t = lane % 4, a lane has
//   c[0, 1]: C(g, 2 t + 0, 1)        c[2, 3]: C(g + 8, 2 t + 0, 1)
//   a[0]:    A(g, 2 t + 0, 1)        a[1]:    A(g + 8, 2 t + 0, 1)       a[2, 3]: columns + 8
//   b0:      B(2 t + 0, 1, g)        b1:      B(2 t + 8, 9, g)
#pragma once

#include <type_traits>

#include "cuda/primitives/thread.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda {

// Loads four 8 x 8 matrices from shared memory. `row`, 16-byte aligned, is row lane % 8 of matrix
// lane / 8; x[m] holds matrix m.
TORCH_EXT_DEVICE void load_matrices(uint32_t (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same, each matrix transposed.
TORCH_EXT_DEVICE void load_matrices_transposed(uint32_t (&x)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// C += A B in float.
template <class E>
TORCH_EXT_DEVICE void multiply_add_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
  if constexpr (std::is_same_v<E, BFloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<E, Float16>);
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

}  // namespace torch_ext::cuda
