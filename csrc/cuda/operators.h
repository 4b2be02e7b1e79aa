// The four operators on CUDA devices: what the binding calls.
//
// Every function launches on the stream of `launch` and returns at once. `workspace` is device
// memory of as many bytes as the function of that name says, of which nothing is expected.
// They throw std::runtime_error where a launch fails.
#pragma once

#include "attention/problem.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda {

struct Launch {
  Stream stream;
  void* workspace = nullptr;
};

int64_t forward_workspace(const ForwardProblem& p);
int64_t backward_workspace(const BackwardProblem& p);
int64_t tangent_workspace(const TangentProblem& p);
int64_t second_order_workspace(const SecondOrderProblem& p);

void forward(const ForwardProblem& p, const Launch& launch);
void backward(const BackwardProblem& p, const Launch& launch);
void tangent(const TangentProblem& p, const Launch& launch);
void second_order(const SecondOrderProblem& p, const Launch& launch);

}  // namespace torch_ext::cuda
