#include "ops/dense.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/SymBool.h>
#include <c10/core/SymFloat.h>

#include <limits>
#include <vector>

#include "ops/checks.h"

namespace torch_ext::ops {
namespace {

using c10::SymInt;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool has_heads_of(const Tensor& tensor, const Tensor& query) {
  return query.dim() == 2 || TORCH_GUARD_OR_FALSE(query.sym_size(-3).sym_eq(tensor.sym_size(-3)));
}

// (…, Hkv, M, D) → (…, H, M, D): query head h reads head h / (H / Hkv).
Tensor repeat_heads(const Tensor& tensor, const Tensor& query) {
  if (has_heads_of(tensor, query)) return tensor;
  std::vector<SymInt> repeated = tensor.sym_sizes().vec(), split = repeated;
  repeated[repeated.size() - 3] = query.sym_size(-3);
  split.insert(split.end() - 2, query.sym_size(-3) / tensor.sym_size(-3));
  return tensor.unsqueeze(-3).expand_symint(split).reshape_symint(repeated);
}

// The transpose of repeat_heads: (…, H, M, D) → the shape of `like`, a sum over each group.
Tensor sum_heads(const Tensor& tensor, const Tensor& like) {
  if (has_heads_of(like, tensor)) return tensor;
  std::vector<SymInt> split = like.sym_sizes().vec();
  split.insert(split.end() - 2, tensor.sym_size(-3) / like.sym_size(-3));
  return tensor.reshape_symint(split).sum(-3);
}

// A number per head, broadcastable to (…, H), → broadcastable to (…, H, N, M).
Tensor per_head(const Tensor& tensor, const Tensor& query) {
  const Tensor numbers = query.dim() == 2 ? tensor.reshape({}) : tensor;
  return numbers.unsqueeze(-1).unsqueeze(-1);
}

// The transpose of per_head: sums (…, H, N, M) to the shape of `like`.
Tensor sum_per_head(const Tensor& matrix, const Tensor& like) {
  const Tensor sums = matrix.sum(at::IntArrayRef{-2, -1});
  return sums.dim() == 0 ? sums.reshape_symint(like.sym_sizes())
                         : sums.sum_to_size_symint(like.sym_sizes());
}

// The rows of something that broadcasts to (…, N, M) or (…, N, D).
Tensor select_rows(const Tensor& tensor, const Tensor& rows) {
  const bool is_broadcast = tensor.dim() < 2 || TORCH_GUARD_OR_FALSE(tensor.sym_size(-2).sym_eq(1));
  return is_broadcast ? tensor : tensor.index_select(-2, rows);
}

WeightsArguments select_rows(WeightsArguments a) {
  if (!a.rows) return a;
  a.query = a.query.index_select(-2, *a.rows);
  if (a.options.mask) a.options.mask = select_rows(*a.options.mask, *a.rows);
  if (a.options.bias) a.options.bias = select_rows(*a.options.bias, *a.rows);
  return a;
}

// j − i − offset, (n, M), int64
Tensor distances(const WeightsArguments& a) {
  const SymInt queries = a.query.sym_size(-2), keys = a.key.sym_size(-2);
  const auto indices = [&](const SymInt& count) {
    return at::arange(at::Scalar(count), a.query.options().dtype(at::kLong));
  };
  const Tensor i = (a.rows ? *a.rows : indices(queries)).unsqueeze(-1), j = indices(keys);
  return a.options.bottom_right ? j - i - at::Scalar(keys - queries) : j - i;
}

// What each query may see, broadcastable to (…, H, n, M); undefined when that is every key.
Tensor visible_entries(const ScoreOptions& options, const Tensor& distance) {
  Tensor visible = value_or_undefined(options.mask);
  const auto restrict = [&](const Tensor& rule) {
    visible = visible.defined() ? visible.logical_and(rule) : rule;
  };
  if (options.bias) restrict(*options.bias != -kInfinity);
  if (options.window_left) restrict(distance >= -*options.window_left);
  if (options.window_right) restrict(distance <= *options.window_right);
  if (options.is_causal) restrict(distance <= 0);
  return visible;
}

Tensor append_column(const Tensor& matrix, const Tensor& column) {
  std::vector<SymInt> sizes = matrix.sym_sizes().vec();
  sizes.back() = 1;
  return at::cat({matrix, column.expand_symint(sizes)}, -1);
}

// Softmax over all but −inf; rows that are −inf everywhere become 0, and so do their gradients.
Tensor softmax_of_finite(const Tensor& scores) {
  const Tensor is_absent = scores.detach() == -kInfinity;
  return scores.masked_fill(is_absent.all(-1, /*keepdim=*/true), 0)
      .softmax(-1)
      .masked_fill(is_absent, 0);
}

// None and an undefined tensor are both ways to say that an optional tensor is absent.
template <class Arguments>
Arguments without_undefined(const Arguments& arguments) {
  return map_tensors(arguments, [](const Tensor& tensor) { return tensor; });
}

Tensor in_type(const OptionalTensor& tensor, at::ScalarType type) {
  return tensor ? tensor->to(type) : Tensor();
}

}  // namespace

Tensor DenseWeights::columns(const Tensor& matrix) const {
  return matrix.narrow_symint(-1, 0, key.sym_size(-2));
}

DenseWeights dense_weights(const WeightsArguments& arguments) {
  const Tensor position = distances(without_undefined(arguments));
  const WeightsArguments a = select_rows(without_undefined(arguments));
  const ScoreOptions& options = a.options;
  const at::ScalarType type = accumulation_type(a.query.scalar_type());
  DenseWeights w;
  w.query = a.query.to(type);
  w.key = repeat_heads(a.key.to(type), a.query);
  w.scale = options.scale
                ? at::Scalar(*options.scale)
                : at::Scalar(c10::SymFloat(1.0) / c10::SymFloat(a.query.sym_size(-1)).sqrt());
  // S = softcap tanh(scale QKᵀ / softcap) + bias − slopes |j − i − offset|
  Tensor scores = at::matmul(w.query * w.scale, w.key.transpose(-2, -1));
  if (options.softcap) {
    w.tanh = (scores / *options.softcap).tanh();
    scores = w.tanh * *options.softcap;
  }
  if (options.bias) scores = scores + options.bias->to(type);
  if (options.slopes) {
    w.distance = position.abs().to(type);
    scores = scores - per_head(options.slopes->to(type), a.query) * w.distance;
  }
  const Tensor visible = visible_entries(options, position);
  if (visible.defined()) {
    w.hidden = visible.logical_not();
    scores = scores.masked_fill(w.hidden, -kInfinity);
  }
  if (options.sink) scores = append_column(scores, per_head(options.sink->to(type), a.query));
  w.weights = visible.defined() || options.sink ? softmax_of_finite(scores) : scores.softmax(-1);
  return w;
}

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
        value(repeat_heads(saved.value.to(type), saved.query)) {
    const auto heads_of = [&](const OptionalTensor& tangent, const Tensor& like) {
      return tangent ? repeat_heads(tangent->to(type), saved.query) : at::zeros_like(like);
    };
    q_t = heads_of(tangents.query, query);
    k_t = heads_of(tangents.key, key);
    v_t = heads_of(tangents.value, value);
    if (options.dropout_p > 0) kept = kept_weights();
    if (tanh.defined()) cap_slope = 1 - tanh * tanh;
    scores_0_t =
        (at::matmul(q_t, key.transpose(-2, -1)) + at::matmul(query, k_t.transpose(-2, -1))) * scale;
    scores_t = tangent_of_scores(tangents);
    mu = (weights * scores_t).sum(-1, /*keepdim=*/true);
    weights_t = weights * (scores_t - mu);
  }

  Tensor kept_weights() const {
    const SymInt heads = saved.query.dim() == 2 ? SymInt(1) : saved.query.sym_size(-3);
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
    return at::matmul(drop(columns(weights_t)), value) + at::matmul(drop(columns(weights)), v_t);
  }
};

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
  const auto& [query, key, value, output, logsumexp, residual] = a.saved;
  const Tensor grad_output = in_type(a.grad_output, d.type);
  const Tensor grad_logsumexp = in_type(a.grad_logsumexp, d.type);

  // P̄ = ŌVᵀ∘Z,  P̄̇ = ŌV̇ᵀ∘Z,  δ = rowsum(P∘P̄) − L̄,  S̄ = P∘(P̄ − δ)
  const auto weights_gradient = [&](const Tensor& v) {
    return d.with_sink(grad_output.defined() ? d.drop(at::matmul(grad_output, v.transpose(-2, -1)))
                                             : at::zeros_like(d.scores_0_t));
  };
  const Tensor dp = weights_gradient(d.value), dp_t = weights_gradient(d.v_t);
  Tensor delta = (d.weights * dp).sum(-1, /*keepdim=*/true);
  if (grad_logsumexp.defined()) delta = delta - grad_logsumexp.unsqueeze(-1);
  const Tensor ds = d.weights * (dp - delta), ds_columns = d.columns(ds);
  // G = P̄̇ + Ṡ∘(P̄ − δ) − μ∘P̄,  T = P∘(G − rowsum(P∘G))
  const Tensor g = dp_t + d.scores_t * (dp - delta) - d.mu * dp;
  const Tensor t = d.weights * (g - (d.weights * g).sum(-1, /*keepdim=*/true));
  const Tensor t_columns = d.columns(t);
  // S̄₀ = dS/dS₀∘S̄,  T₀ = dS/dS₀∘T + S̄∘Ṡ₀∘d²S/dS₀²
  const Tensor ds_0 = d.through_cap(ds_columns);
  Tensor t_0 = d.through_cap(t_columns);
  if (d.cap_slope.defined()) {
    t_0 = t_0 - ds_columns * d.scores_0_t * d.tanh * d.cap_slope * (2 / *a.options.softcap);
  }

  const auto& wanted = a.output_mask;
  const Options& options = a.options;
  SecondOrderResult result;
  auto& [grad_query, grad_key, grad_value, grad_bias, grad_slopes, grad_sink, output_t, lse_t] =
      result;
  if (wanted[0]) {
    grad_query = cast_like((at::matmul(ds_0, d.k_t) + at::matmul(t_0, d.key)) * d.scale, query);
  }
  if (wanted[1]) {
    const Tensor sum =
        at::matmul(ds_0.transpose(-2, -1), d.q_t) + at::matmul(t_0.transpose(-2, -1), d.query);
    grad_key = cast_like(sum_heads(sum * d.scale, key), key);
  }
  if (wanted[2]) {
    grad_value =
        grad_output.defined()
            ? cast_like(sum_heads(at::matmul(d.drop(d.columns(d.weights_t)).transpose(-2, -1),
                                             grad_output),
                                  value),
                        value)
            : at::zeros_like(value);
  }
  if (wanted[3] && options.bias) {
    grad_bias = cast_like(t_columns.sum_to_size_symint(options.bias->sym_sizes()), *options.bias);
  }
  if (wanted[4] && options.slopes) {
    grad_slopes =
        cast_like(-sum_per_head(t_columns * d.distance, *options.slopes), *options.slopes);
  }
  if (wanted[5] && options.sink) {
    const Tensor sink_column = t.narrow_symint(-1, key.sym_size(-2), 1);
    grad_sink = cast_like(sum_per_head(sink_column, *options.sink), *options.sink);
  }
  if (wanted[6]) output_t = cast_like(d.output_tangent(), query);
  if (wanted[7]) lse_t = d.mu.squeeze(-1);
  return result;
}

}  // namespace torch_ext::ops
