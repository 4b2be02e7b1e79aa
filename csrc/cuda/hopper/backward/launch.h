// Launches the Hopper backward: the statistics of all rows, then a kernel for each side.
#pragma once

#include "cuda/hopper/backward/kernel.h"
#include "cuda/hopper/backward/statistics.h"
#include "cuda/hopper/launch.h"
#include "cuda/hopper/operators.h"
#include "cuda/primitives/launch.h"

namespace torch_ext::cuda::hopper {

template <class E, class Tiles>
void launch_gradients(const BackwardProblem& p, const RowStatistics* statistics,
                      const Stream& stream) {
  const Side own = Tiles::kOwnsKeys ? key_side(p) : query_side(p);
  const Side other = Tiles::kOwnsKeys ? query_side(p) : key_side(p);
  const auto view = [&](const Operand& x, const Side& side, int rows) {
    return view_operand<E>(p, x, side.length, side.group, rows);
  };
  // A causal limit lets the last queries, and the first keys, see most.
  const int64_t other_bytes = 2 * (p.head_size + p.value_head_size) * other.length * other.heads /
                              std::min(own.heads, other.heads);
  const Schedule schedule = make_schedule(own.heads, (own.length + Tiles::kOwn - 1) / Tiles::kOwn,
                                          other.group, other_bytes, !Tiles::kOwnsKeys);
  const Visibility visibility = make_visibility(p);
  const BackwardParameters parameters{view(*own.x, own, Tiles::kOwn),
                                      view(*own.y, own, Tiles::kOwn),
                                      view(*other.x, other, Tiles::kOther),
                                      view(*other.y, other, Tiles::kOther),
                                      p,
                                      Tiles::kOwnsKeys ? visibility.transposed() : visibility,
                                      schedule,
                                      statistics,
                                      statistics_rows(p),
                                      static_cast<float>(p.scale),
                                      scale_log2(p)};
  launch<BackwardKernel<E, Tiles>>(stream, std::min<int64_t>(schedule.tasks(), processors(stream)),
                                   sizeof(typename Tiles::Shared), parameters);
}

// With heads of 256 the gradients of key and value do not fit in the registers together.
template <class E, int kHeadSize>
bool backward_for(const BackwardProblem& p, const Launch& on) {
  if (!is_hopper(on.stream)) return false;
  const CurrentDevice current(on.stream, "hopper backward");
  auto* const statistics = static_cast<RowStatistics*>(on.workspace);
  using Statistics = StatisticsKernel<E, kHeadSize>;
  const StatisticsParameters of_rows{p, statistics, statistics_rows(p)};
  launch<Statistics>(on.stream, Statistics::tasks(of_rows), 0, of_rows);

  const auto run = [&]<Gradients kGradients, int kOther>() {
    launch_gradients<E, BackwardTiles<kHeadSize, kGradients, kOther>>(p, statistics, on.stream);
  };
  if (p.grad_query)
    run.template operator()<Gradients::kQuery, kHeadSize == 64    ? 128
                                               : kHeadSize == 128 ? 80
                                                                  : 64>();
  if constexpr (kHeadSize == 256) {
    if (p.grad_key) run.template operator()<Gradients::kKey, 64>();
    if (p.grad_value) run.template operator()<Gradients::kValue, 64>();
  } else {
    constexpr int kQueries = kHeadSize == 64 ? 80 : 64;
    if (p.grad_key || p.grad_value) run.template operator()<Gradients::kKeyAndValue, kQueries>();
  }
  return true;
}

}  // namespace torch_ext::cuda::hopper
