// Z(i, j) of one query head: 0 or 1 / (1 - p), from seed and position (attention/philox.h).
#pragma once

#include "attention/philox.h"
#include "cuda/tile/element.h"

namespace torch_ext::cuda {

template <class T>
class Dropout {
 public:
  TORCH_EXT_DEVICE Dropout(const Problem& p, int64_t head)
      : p_(p), threshold_(dropout_threshold(p.dropout_p)), kept_(T(1 / (1 - p.dropout_p))) {
    set_head(head);
  }

  TORCH_EXT_DEVICE void set_head(int64_t head) {
    if (!p_.seed) return;
    seed_ = static_cast<uint64_t>(
        static_cast<const int64_t*>(p_.seed.data)[head_offset(p_, p_.seed, head)]);
    head_ = head % p_.leading_sizes[p_.leading_dims - 1];
  }

  TORCH_EXT_DEVICE T operator()(int64_t i, int64_t j) const {
    if (!p_.seed) return 1;
    return dropout_keeps(seed_, head_, i, j, threshold_) ? kept_ : T(0);
  }

 private:
  const Problem& p_;
  uint32_t threshold_;
  T kept_;
  uint64_t seed_ = 0;
  int64_t head_ = 0;
};

}  // namespace torch_ext::cuda
