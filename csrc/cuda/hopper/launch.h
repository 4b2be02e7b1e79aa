// What launches of Hopper kernels work out beforehand.
#pragma once

#include <algorithm>

#include "cuda/hopper/operand.h"
#include "cuda/hopper/schedule.h"

namespace torch_ext::cuda::hopper {

// What stays in the L2 cache beside the rest.
constexpr int64_t kCachedBytes = 32 << 20;

// Tasks of `heads` heads with `tiles` tiles each. `sharers` heads read the same `bytes` of the
// other side.
inline Schedule make_schedule(int64_t heads, int64_t tiles, int64_t sharers, int64_t bytes,
                              bool is_descending) {
  const int64_t at_once = std::max<int64_t>(1, kCachedBytes / bytes) * sharers;
  return {static_cast<int>(heads), static_cast<int>(std::min(heads, at_once)),
          static_cast<int>(tiles), is_descending};
}

// What queries see of keys.
inline Visibility make_visibility(const Problem& p) {
  const auto narrow = [](int64_t x) {
    return static_cast<int>(std::clamp(x, -kMaxLength, kMaxLength));
  };
  return {static_cast<int>(p.query_length), static_cast<int>(p.key_length),
          narrow(p.offset - p.left), narrow(p.offset + p.right + 1)};
}

// scale / ln 2: weights are powers of two.
inline float scale_log2(const Problem& p) {
  return static_cast<float>(p.scale * 1.4426950408889634);
}

}  // namespace torch_ext::cuda::hopper
