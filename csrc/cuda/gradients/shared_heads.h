// Which query heads share an element of a broadcast operand: their gradients are added up.
#pragma once

#include "cuda/tile/element.h"

namespace torch_ext::cuda {

// The leading dimensions in which `operand` is broadcast (stride 0) and those in which it is not.
class SharedHeads {
 public:
  TORCH_EXT_INLINE SharedHeads(const Problem& p, const Operand& operand)
      : p_(p), operand_(operand) {}

  // How many different elements heads read, and how many heads read each.
  TORCH_EXT_INLINE int64_t elements() const { return sharers() > 0 ? count(false) : 0; }
  TORCH_EXT_INLINE int64_t sharers() const { return count(true); }

  // Query head number `sharer`, in their order, of those that read `element`.
  TORCH_EXT_INLINE int64_t head(int64_t element, int64_t sharer) const {
    int64_t head = 0, place = 1;
    for (int d = p_.leading_dims - 1; d >= 0; --d) {
      const int64_t size = p_.leading_sizes[d];
      int64_t& rest = is_shared(d) ? sharer : element;
      head += rest % size * place;
      rest /= size;
      place *= size;
    }
    return head;
  }

 private:
  TORCH_EXT_INLINE bool is_shared(int d) const { return operand_.leading_strides[d] == 0; }
  TORCH_EXT_INLINE int64_t count(bool shared) const {
    int64_t n = 1;
    for (int d = 0; d < p_.leading_dims; ++d)
      if (is_shared(d) == shared) n *= p_.leading_sizes[d];
    return n;
  }

  const Problem& p_;
  const Operand& operand_;
};

}  // namespace torch_ext::cuda
