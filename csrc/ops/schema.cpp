// The operators' schemas. Everything else in this directory registers kernels for them.
//
// query (…, H, N, D), key (…, Hkv, M, D), value (…, Hkv, M, E), where Hkv divides H; output (…, H,
// N, E); logsumexp and its residual (…, H, N). 2-D tensors are one head. mask (bool, true = attend)
// and bias broadcast to (…, H, N, M).
#include <torch/library.h>

// clang-format off
TORCH_LIBRARY(torch_ext, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};

  // The output alone. Broadcasts the batch dimensions of query, key and value.
  m.def("attention("
        "Tensor query, Tensor key, Tensor value, *, "
        "Tensor? mask=None, Tensor? bias=None, bool is_causal=False, float? scale=None"
        ") -> Tensor", tags);

  // The weights are exp((S - logsumexp) - logsumexp_residual): the residual is what rounding
  // logsumexp to its type lost. It is not differentiable; output and logsumexp are.
  m.def("attention_forward("
        "Tensor query, Tensor key, Tensor value, *, "
        "Tensor? mask=None, Tensor? bias=None, bool is_causal=False, float? scale=None"
        ") -> (Tensor output, Tensor logsumexp, Tensor logsumexp_residual)", tags);

  // The gradients that output_mask asks for, of query, key, value and bias; the others are
  // undefined. As a function it depends on grad_output, grad_logsumexp, query, key, value and bias.
  // output, logsumexp and logsumexp_residual are functions of those already: they are passed to
  // save work, count as constants, and a derivative of this operator is the total derivative
  // through query, key, value and bias.
  m.def("attention_backward("
        "Tensor? grad_output, Tensor? grad_logsumexp, "
        "Tensor query, Tensor key, Tensor value, "
        "Tensor output, Tensor logsumexp, Tensor logsumexp_residual, *, "
        "Tensor? mask=None, Tensor? bias=None, bool is_causal=False, float? scale=None, "
        "bool[4] output_mask=[True, True, True, True]"
        ") -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)", tags);

  // The attention matrix (…, H, N, M), or those of its rows that `rows` (1-D, int64) names, in that
  // order.
  m.def("attention_weights("
        "Tensor query, Tensor key, *, "
        "Tensor? mask=None, Tensor? bias=None, bool is_causal=False, float? scale=None, "
        "Tensor? rows=None"
        ") -> Tensor", tags);
}
