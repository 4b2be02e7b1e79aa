// Launches the Hopper forward.
#pragma once

#include <algorithm>

#include "cuda/hopper/forward/kernel.h"
#include "cuda/hopper/launch.h"
#include "cuda/hopper/operators.h"

namespace torch_ext::cuda::hopper {

template <class E, class Tiles>
void launch_forward(const ForwardProblem& p, const Stream& stream) {
  const int64_t tiles = (p.query_length + Tiles::kQueries - 1) / Tiles::kQueries;
  const int64_t key_bytes = 2 * p.key_length * (p.head_size + p.value_head_size);
  const Schedule schedule = make_schedule(p.query_heads(), tiles, p.group, key_bytes, true);
  const ForwardParameters parameters{
      view_operand<E>(p, p.query, p.query_length, 1, Tiles::kQueries),
      view_operand<E>(p, p.key, p.key_length, p.group, Tiles::kKeys),
      view_operand<E>(p, p.value, p.key_length, p.group, Tiles::kKeys),
      p,
      make_visibility(p),
      schedule,
      static_cast<float>(p.scale),
      scale_log2(p)};
  launch<ForwardKernel<E, Tiles>>(stream, std::min<int64_t>(schedule.tasks(), processors(stream)),
                                  sizeof(typename Tiles::Shared), parameters);
}

// With heads of 128, tiles of 176 keys are the largest that fit; where the window has edges, more
// of a smaller tile is visible.
template <class E, int kHeadSize>
bool forward_for(const ForwardProblem& p, const Launch& on) {
  if (!is_hopper(on.stream)) return false;
  const CurrentDevice current(on.stream, "hopper forward");
  if constexpr (kHeadSize == 64) {
    launch_forward<E, ForwardTiles<64, 128>>(p, on.stream);
  } else if constexpr (kHeadSize == 256) {
    launch_forward<E, ForwardTiles<256, 80>>(p, on.stream);
  } else if (p.left >= p.query_length + p.key_length && p.right >= p.query_length + p.key_length) {
    launch_forward<E, ForwardTiles<128, 176>>(p, on.stream);
  } else {
    launch_forward<E, ForwardTiles<128, 128>>(p, on.stream);
  }
  return true;
}

}  // namespace torch_ext::cuda::hopper
