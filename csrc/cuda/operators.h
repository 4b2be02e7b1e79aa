// The CUDA kernels as the operators call them: no tensors, and no CUDA headers either.
//
// Data pointers of the problems are device memory. Every call only enqueues work on the stream;
// where it cannot, it throws std::runtime_error.
#pragma once

#include "attention/problem.h"
#include "cuda/primitives/types.h"

namespace torch_ext::cuda {

struct Launch {
  Stream stream;
  void* workspace;  // as many bytes as the operator's workspace function says, 256-byte aligned
};

// Bytes of device memory, uninitialised, that live as long as the call's work; 0: none.
int64_t forward_workspace(const ForwardProblem& problem);
int64_t backward_workspace(const BackwardProblem& problem);
int64_t tangent_workspace(const TangentProblem& problem);
int64_t second_order_workspace(const SecondOrderProblem& problem);

void forward(const ForwardProblem& problem, const Launch& launch);
void backward(const BackwardProblem& problem, const Launch& launch);
void tangent(const TangentProblem& problem, const Launch& launch);
void second_order(const SecondOrderProblem& problem, const Launch& launch);

// Which weights (samples, heads, queries, keys) dropout keeps.
struct DropoutMaskProblem {
  const int64_t* seeds;  // (samples)
  void* kept;            // Kept (samples, heads, queries, keys)
  int64_t samples, heads, queries, keys;
  double dropout_p;
};

template <class Kept>  // bool
void dropout_mask(const DropoutMaskProblem& problem, const Stream& stream);

}  // namespace torch_ext::cuda
