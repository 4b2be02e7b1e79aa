// The operators of one type of query, key and value: compiled in files of their own. The tangent is
// a second order without output gradients.
#pragma once

#include "cuda/operators.h"

namespace torch_ext::cuda {

template <class E>
int64_t forward_workspace(const ForwardProblem& problem);
template <class E>
int64_t backward_workspace(const BackwardProblem& problem);
template <class E>
int64_t second_order_workspace(const SecondOrderProblem& problem);

template <class E>
void forward(const ForwardProblem& problem, const Launch& launch);
template <class E>
void backward(const BackwardProblem& problem, const Launch& launch);
template <class E>
void second_order(const SecondOrderProblem& problem, const Launch& launch);

}  // namespace torch_ext::cuda
