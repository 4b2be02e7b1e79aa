// What this processor can run. Cheap to ask; the answers never change.
#pragma once

namespace torch_ext::cpu {

bool has_avx2();         // with FMA and F16C
bool has_avx512();       // F, BW, VL and DQ, and all of the above
bool has_avx512_bf16();  // and all of the above

}  // namespace torch_ext::cpu
