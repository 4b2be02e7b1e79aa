// The operators' schemas. Everything else in this directory registers kernels for them.
//
// query (…, H, N, D), key (…, Hkv, M, D), value (…, Hkv, M, E), where Hkv divides H; output (…, H,
// N, E); logsumexp and its residual (…, H, N). 2-D tensors are one head. mask (bool, true = attend)
// and bias broadcast to (…, H, N, M), slopes and sink to (…, H), seed (int64) to (…).
//
// Key j lies at distance j - i - offset from query i; offset is 0, or M - N with bottom_right.
//   scores = softcap tanh(scale QKᵀ / softcap) + bias - slopes |distance|
// A key is visible iff -window_left <= distance <= window_right, distance <= 0 with is_causal, the
// mask says so and bias > -inf. sink is the score of one more key, whose value is 0. With
// dropout_p > 0 weights are dropped as seed and position (head, query, key) say.
#include <torch/library.h>

// clang-format off
#define SCORE_OPTIONS                                                                        \
  "Tensor? mask=None, Tensor? bias=None, bool is_causal=False, SymInt? window_left=None, "   \
  "SymInt? window_right=None, bool bottom_right=False, float? scale=None, "                  \
  "float? softcap=None, Tensor? slopes=None, Tensor? sink=None"
#define OPTIONS SCORE_OPTIONS ", float dropout_p=0.0, Tensor? seed=None"
#define TANGENTS                                                                             \
  "Tensor? query_tangent, Tensor? key_tangent, Tensor? value_tangent, "                      \
  "Tensor? bias_tangent, Tensor? slopes_tangent, Tensor? sink_tangent, "
#define SAVED                                                                                \
  "Tensor query, Tensor key, Tensor value, "                                                 \
  "Tensor output, Tensor logsumexp, Tensor logsumexp_residual, *, "

TORCH_LIBRARY(torch_ext, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};

  // The output alone. Broadcasts the batch dimensions of query, key and value, and draws the seed
  // where dropout needs one that was not given.
  // Options may be given by position: Python hands them over so in half the time.
  m.def("attention(Tensor query, Tensor key, Tensor value, " OPTIONS ") -> Tensor",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});

  // `attention` with its usual options alone: handing over an argument from Python takes time that
  // small problems notice.
  m.def("_attention(Tensor query, Tensor key, Tensor value, bool is_causal, float? scale, "
        "Tensor? mask=None, Tensor? bias=None) -> Tensor", tags);

  // The weights are exp((S - logsumexp) - logsumexp_residual): the residual is what rounding
  // logsumexp to its type lost. It is not differentiable; output and logsumexp are.
  m.def("attention_forward(Tensor query, Tensor key, Tensor value, *, " OPTIONS
        ") -> (Tensor output, Tensor logsumexp, Tensor logsumexp_residual)", tags);

  // In the three operators below, output, logsumexp and logsumexp_residual are what
  // attention_forward made of the other inputs. They are passed to save work and count as
  // constants: a derivative is the total derivative through query, key, value, bias, slopes and
  // sink. Absent gradients and tangents are zero.

  // The gradients that output_mask asks for; the others are undefined.
  m.def("attention_backward(Tensor? grad_output, Tensor? grad_logsumexp, " SAVED OPTIONS
        ", bool[6] output_mask=[True, True, True, True, True, True]"
        ") -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias, "
        "Tensor grad_slopes, Tensor grad_sink)", tags);

  // The directional derivatives of output and logsumexp.
  m.def("attention_tangent(" TANGENTS SAVED OPTIONS
        ") -> (Tensor output_tangent, Tensor logsumexp_tangent)", tags);

  // The gradients of <grad_output, output_tangent> + <grad_logsumexp, logsumexp_tangent>, which are
  // the backward of attention_backward and of attention_tangent, and the tangent of
  // attention_backward. The last two results are the gradients with respect to grad_output and
  // grad_logsumexp. output_mask is in the order of the results.
  m.def("attention_second_order(Tensor? grad_output, Tensor? grad_logsumexp, " TANGENTS SAVED OPTIONS
        ", bool[8] output_mask=[True, True, True, True, True, True, True, True]"
        ") -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias, "
        "Tensor grad_slopes, Tensor grad_sink, Tensor output_tangent, Tensor logsumexp_tangent)",
        tags);

  // The attention matrix (…, H, N, M) before dropout, or those of its rows that `rows` (1-D, int64)
  // names, in that order.
  m.def("attention_weights(Tensor query, Tensor key, *, " SCORE_OPTIONS
        ", Tensor? rows=None) -> Tensor", tags);

  // For tests and the composites of higher derivatives: which weights (…, H, N, M) dropout keeps,
  // for a seed of shape (…).
  m.def("_dropout_mask(Tensor seed, SymInt heads, SymInt queries, SymInt keys, float dropout_p"
        ") -> Tensor", tags);
}
