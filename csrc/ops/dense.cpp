#include "ops/dense.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros_like.h>

#include "ops/checks.h"
#include "ops/dense_weights.h"

namespace torch_ext::ops {
namespace {

// One call and one direction, with the names of the mathematics: x_t is the tangent of x. The sink
// is a column of the matrices that has no counterpart in value.
struct Dense : DenseWeights {
  const Saved& saved;
  const Options& options;
  at::ScalarType type;
  Tensor value;                 // (…, H, M, E)
  Tensor q_t, k_t, v_t;         // as query, key, value
  Tensor kept;                  // Z = 0 or 1/(1 − p); undefined without dropout
  Tensor cap_slope;             // dS/dS₀ = 1 − tanh²; undefined without softcap
  Tensor scores_0_t, scores_t;  // tangents of scale QKᵀ and of the scores
  Tensor mu;                    // (…, H, N, 1): rowsum(P∘Ṡ)
  Tensor weights_t;             // Ṗ = P∘(Ṡ − μ)

  Dense(const Saved& saved, const Options& options, const Tangents& tangents)
      : DenseWeights(dense_weights({saved.query, saved.key, options, /*rows=*/{}})),
        saved(saved),
        options(options),
        type(accumulation_type(saved.query.scalar_type())),
        value(seen(repeat_heads(saved.value.to(type), saved.query), unseen_keys)) {
    const auto heads_of = [&](const OptionalTensor& tangent, const Tensor& like,
                              const Tensor& unseen) {
      if (!tangent) return at::zeros_like(like);
      return seen(repeat_heads(tangent->to(type), saved.query), unseen);
    };
    q_t = heads_of(tangents.query, query, unseen_queries);
    k_t = heads_of(tangents.key, key, unseen_keys);
    v_t = heads_of(tangents.value, value, unseen_keys);
    if (options.dropout_p > 0) kept = kept_weights();
    if (tanh.defined()) cap_slope = 1 - tanh * tanh;
    scores_0_t = (at::matmul(q_t, key.mT()) + at::matmul(query, k_t.mT())) * scale;
    scores_t = tangent_of_scores(tangents);
    mu = (weights * scores_t).sum(-1, /*keepdim=*/true);
    weights_t = weights * (scores_t - mu);
  }

  Tensor kept_weights() const {
    const c10::SymInt heads = saved.query.dim() == 2 ? c10::SymInt(1) : saved.query.sym_size(-3);
    const Tensor mask = DropoutMask::call({*options.seed, heads, saved.query.sym_size(-2),
                                           saved.key.sym_size(-2), options.dropout_p});
    return (saved.query.dim() == 2 ? mask.squeeze(-3) : mask).to(type) / (1 - options.dropout_p);
  }

  Tensor tangent_of_scores(const Tangents& tangents) const {
    Tensor result = through_cap(scores_0_t);
    if (tangents.bias) result = result + tangents.bias->to(type);
    if (tangents.slopes) {
      result = result - per_head(tangents.slopes->to(type), saved.query) * distance;
    }
    if (hidden.defined()) result = result.masked_fill(hidden, 0);
    if (!options.sink) return result;
    const Tensor sink_t = tangents.sink ? *tangents.sink : at::zeros_like(*options.sink);
    return append_column(result, per_head(sink_t.to(type), saved.query));
  }

  Tensor through_cap(const Tensor& matrix) const {
    return cap_slope.defined() ? cap_slope * matrix : matrix;
  }
  Tensor drop(const Tensor& matrix) const { return kept.defined() ? kept * matrix : matrix; }
  Tensor with_sink(const Tensor& matrix) const {  // whose value is 0
    return options.sink ? append_column(matrix, at::zeros_like(mu)) : matrix;
  }

  // Ȯ = (Ṗ∘Z)V + (P∘Z)V̇
  Tensor output_tangent() const {
    return seen(
        at::matmul(drop(columns(weights_t)), value) + at::matmul(drop(columns(weights)), v_t),
        unseen_queries);
  }
};

// Gradients of <grad_output, Ȯ> + <grad_logsumexp, L̇> that are matrices (…, H, N, M).
// N, M)
struct SecondOrderMatrices {
  Tensor s_0;  // S̄₀ = dS/dS₀∘S̄, which is the gradient with respect to Ṡ₀
  Tensor t;    // T, of the scores, with the column of the sink
  Tensor t_0;  // T₀, of scale QKᵀ
};

SecondOrderMatrices second_order_matrices(const Dense& d, const Tensor& grad_output,
                                          const OptionalTensor& grad_logsumexp) {
  // P̄ = ŌVᵀ∘Z,  P̄̇ = ŌV̇ᵀ∘Z,  δ = rowsum(P∘P̄) − L̄,  S̄ = P∘(P̄ − δ)
  const auto weights_gradient = [&](const Tensor& v) {
    return d.with_sink(d.drop(at::matmul(grad_output, v.mT())));
  };
  const Tensor dp = weights_gradient(d.value), dp_t = weights_gradient(d.v_t);
  Tensor delta = (d.weights * dp).sum(-1, /*keepdim=*/true);
  if (grad_logsumexp) delta = delta - grad_logsumexp->unsqueeze(-1);
  const Tensor ds = d.columns(d.weights * (dp - delta));
  // G = P̄̇ + Ṡ∘(P̄ − δ) − μ∘P̄,  T = P∘(G − rowsum(P∘G))
  const Tensor g = dp_t + d.scores_t * (dp - delta) - d.mu * dp;
  const Tensor t = d.weights * (g - (d.weights * g).sum(-1, /*keepdim=*/true));
  // T₀ = dS/dS₀∘T + S̄∘Ṡ₀∘d²S/dS₀²
  Tensor t_0 = d.through_cap(d.columns(t));
  if (d.cap_slope.defined()) {
    t_0 = t_0 - ds * d.scores_0_t * d.tanh * d.cap_slope * (2 / *d.options.softcap);
  }
  return {d.through_cap(ds), t, t_0};
}

Tensor cast_like(const Tensor& result, const Tensor& primal) {
  return result.to(primal.scalar_type());
}

}  // namespace

TangentResult dense_tangent(const TangentArguments& arguments) {
  const TangentArguments a = without_undefined(arguments);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Dense d(a.saved, a.options, a.tangents);
  return {cast_like(d.output_tangent(), a.saved.query), d.mu.squeeze(-1)};
}

SecondOrderResult dense_second_order(const SecondOrderArguments& arguments) {
  const SecondOrderArguments a = without_undefined(arguments);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Dense d(a.saved, a.options, a.tangents);
  const Tensor output_tangent = d.output_tangent();
  const Tensor grad_output = a.grad_output ? seen(a.grad_output->to(d.type), d.unseen_queries)
                                           : at::zeros_like(output_tangent);
  const auto [s_0, t, t_0] = second_order_matrices(d, grad_output, a.grad_logsumexp);

  const Tensor &query = a.saved.query, &key = a.saved.key, &value = a.saved.value;
  const OptionalTensor &bias = a.options.bias, &slopes = a.options.slopes, &sink = a.options.sink;
  const auto& wanted = a.output_mask;
  SecondOrderResult result;
  auto& [grad_query, grad_key, grad_value, grad_bias, grad_slopes, grad_sink, output_t, lse_t] =
      result;
  if (wanted[0]) {
    const Tensor sum = at::matmul(s_0, d.k_t) + at::matmul(t_0, d.key);
    grad_query = cast_like(seen(sum * d.scale, d.unseen_queries), query);
  }
  if (wanted[1]) {
    const Tensor sum = at::matmul(s_0.mT(), d.q_t) + at::matmul(t_0.mT(), d.query);
    grad_key = cast_like(sum_heads(seen(sum * d.scale, d.unseen_keys), key), key);
  }
  if (wanted[2]) {
    const Tensor sum = at::matmul(d.drop(d.columns(d.weights_t)).mT(), grad_output);
    grad_value = cast_like(sum_heads(seen(sum, d.unseen_keys), value), value);
  }
  if (wanted[3] && bias) {
    grad_bias = cast_like(d.columns(t).sum_to_size_symint(bias->sym_sizes()), *bias);
  }
  if (wanted[4] && slopes) {
    grad_slopes = cast_like(-sum_per_head(d.columns(t) * d.distance, *slopes), *slopes);
  }
  if (wanted[5] && sink) {
    const Tensor column = t.narrow_symint(-1, key.sym_size(-2), 1);
    grad_sink = cast_like(sum_per_head(column, *sink), *sink);
  }
  if (wanted[6]) output_t = cast_like(output_tangent, query);
  if (wanted[7]) lse_t = d.mu.squeeze(-1);
  return result;
}

}  // namespace torch_ext::ops
