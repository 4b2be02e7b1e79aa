// Launches the Hopper forward.
#pragma once

#include <algorithm>

#include "cuda/hopper/forward.h"
#include "cuda/hopper/forward_kernel.h"

namespace torch_ext::cuda::hopper {

// Keys and values of heads that are worked on together: what stays in the L2 cache beside the rest.
constexpr int64_t kCachedBytes = 32 << 20;

inline Schedule make_schedule(const ForwardProblem& p, int64_t queries_per_tile) {
  const int64_t bytes_per_head = 2 * p.key_length * (p.head_size + p.value_head_size);
  const int64_t key_heads = std::max<int64_t>(1, kCachedBytes / bytes_per_head);
  return {p.query_heads(), std::min(p.query_heads(), key_heads * p.group),
          (p.query_length + queries_per_tile - 1) / queries_per_tile};
}

inline Visibility make_visibility(const Problem& p) {
  const auto narrow = [](int64_t x) {
    return static_cast<int>(std::clamp(x, -kMaxLength, kMaxLength));
  };
  return {static_cast<int>(p.query_length), static_cast<int>(p.key_length),
          narrow(p.offset - p.left), narrow(p.offset + p.right + 1)};
}

// `rows` per tile.
template <class E>
OperandView view_operand(const Problem& p, const Operand& x, int64_t length, int64_t group,
                         int rows) {
  const OperandLayout layout = describe_operand(p, x, length, p.head_size, group).value();
  return {make_tensor_map<E>(layout.tensor, rows), layout.heads};
}

template <class E, class Tiles>
void launch_forward(const ForwardProblem& p, const Stream& stream) {
  const auto scale_log2 = static_cast<float>(p.scale * 1.4426950408889634);
  const Schedule schedule = make_schedule(p, Tiles::kQueries);
  const ForwardParameters parameters{
      view_operand<E>(p, p.query, p.query_length, 1, Tiles::kQueries),
      view_operand<E>(p, p.key, p.key_length, p.group, Tiles::kKeys),
      view_operand<E>(p, p.value, p.key_length, p.group, Tiles::kKeys),
      p,
      make_visibility(p),
      schedule,
      static_cast<float>(p.scale),
      scale_log2};
  launch<ForwardKernel<E, Tiles>>(stream, std::min<int64_t>(schedule.tasks(), processors(stream)),
                                  sizeof(typename Tiles::Shared), parameters);
}

// With heads of 128, tiles of 176 keys are the largest that fit; where the window has edges, more
// of a smaller tile is visible.
template <class E, int kHeadSize>
bool forward_for(const ForwardProblem& p, const Stream& stream) {
  if (!is_hopper(stream)) return false;
  if constexpr (kHeadSize == 64) {
    launch_forward<E, ForwardTiles<64, 128>>(p, stream);
  } else if constexpr (kHeadSize == 256) {
    launch_forward<E, ForwardTiles<256, 80>>(p, stream);
  } else if (p.left >= p.query_length + p.key_length && p.right >= p.query_length + p.key_length) {
    launch_forward<E, ForwardTiles<128, 176>>(p, stream);
  } else {
    launch_forward<E, ForwardTiles<128, 128>>(p, stream);
  }
  return true;
}

}  // namespace torch_ext::cuda::hopper
