// What the Hopper forward's kernels are given.
#pragma once

#include "attention/problem.h"
#include "cuda/hopper/operand_view.h"
#include "cuda/hopper/schedule.h"

namespace torch_ext::cuda::hopper {

struct ForwardParameters {
  OperandView query, key, value;
  ForwardProblem problem;
  Visibility visibility;
  Schedule schedule;
  float scale;
  float scale_log2;  // scale / ln 2
};

}  // namespace torch_ext::cuda::hopper
