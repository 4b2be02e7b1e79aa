#include "ops/dense_weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
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

// j − i − offset, (n, M), int64; undefined where nothing depends on it.
Tensor distances(const WeightsArguments& a) {
  const ScoreOptions& options = a.options;
  if (!options.slopes && !options.window_left && !options.window_right && !options.is_causal) {
    return Tensor();
  }
  const SymInt queries = a.query.sym_size(-2), keys = a.key.sym_size(-2);
  const auto indices = [&](const SymInt& count) {
    return at::arange(at::Scalar(count), a.query.options().dtype(at::kLong));
  };
  const Tensor i = (a.rows ? *a.rows : indices(queries)).unsqueeze(-1), j = indices(keys);
  return options.bottom_right ? j - i - at::Scalar(keys - queries) : j - i;
}

// What each query may see, broadcastable to (…, H, n, M); undefined when that is every key.
Tensor visible_entries(const ScoreOptions& options, const Tensor& distance) {
  Tensor visible = value_or_undefined(options.mask);
  const auto restrict = [&](const Tensor& rule) {
    visible = visible.defined() ? visible.logical_and(rule) : rule;
  };
  if (options.bias) restrict(*options.bias != -kInfinity);
  if (options.window_left) restrict(distance >= at::Scalar(-*options.window_left));
  if (options.window_right) restrict(distance <= at::Scalar(*options.window_right));
  if (options.is_causal) restrict(distance <= 0);
  return visible;
}

// Softmax over all but −inf; rows that are −inf everywhere become 0, and so do their gradients.
Tensor softmax_of_finite(const Tensor& scores) {
  const Tensor is_absent = scores.detach() == -kInfinity;
  return scores.masked_fill(is_absent.all(-1, /*keepdim=*/true), 0)
      .softmax(-1)
      .masked_fill(is_absent, 0);
}

void hide(DenseWeights& w, const Tensor& visible, const WeightsArguments& a) {
  std::vector<SymInt> sizes = a.query.sym_sizes().vec();
  sizes.back() = a.key.sym_size(-2);
  const Tensor all = visible.expand_symint(sizes);
  w.hidden = visible.logical_not();
  w.unseen_queries = all.any(-1, /*keepdim=*/true).logical_not();
  w.unseen_keys = all.any(-2).unsqueeze(-1).logical_not();
}

}  // namespace

Tensor seen(const Tensor& tensor, const Tensor& unseen) {
  return unseen.defined() ? tensor.masked_fill(unseen, 0) : tensor;
}

Tensor repeat_heads(const Tensor& tensor, const Tensor& query) {
  if (has_heads_of(tensor, query)) return tensor;
  std::vector<SymInt> repeated = tensor.sym_sizes().vec(), split = repeated;
  repeated[repeated.size() - 3] = query.sym_size(-3);
  split.insert(split.end() - 2, query.sym_size(-3) / tensor.sym_size(-3));
  return tensor.unsqueeze(-3).expand_symint(split).reshape_symint(repeated);
}

Tensor sum_heads(const Tensor& tensor, const Tensor& like) {
  if (has_heads_of(like, tensor)) return tensor;
  std::vector<SymInt> split = like.sym_sizes().vec();
  split.insert(split.end() - 2, tensor.sym_size(-3) / like.sym_size(-3));
  return tensor.reshape_symint(split).sum(-3);
}

Tensor per_head(const Tensor& tensor, const Tensor& query) {
  const Tensor numbers = query.dim() == 2 ? tensor.reshape({}) : tensor;
  return numbers.unsqueeze(-1).unsqueeze(-1);
}

Tensor sum_per_head(const Tensor& matrix, const Tensor& like) {
  const Tensor sums = matrix.sum(at::IntArrayRef{-2, -1});
  return sums.dim() == 0 ? sums.reshape_symint(like.sym_sizes())
                         : sums.sum_to_size_symint(like.sym_sizes());
}

Tensor append_column(const Tensor& matrix, const Tensor& column) {
  std::vector<SymInt> sizes = matrix.sym_sizes().vec();
  sizes.back() = 1;
  return at::cat({matrix, column.expand_symint(sizes)}, -1);
}

Tensor DenseWeights::columns(const Tensor& matrix) const {
  return matrix.narrow_symint(-1, 0, key.sym_size(-2));
}

DenseWeights dense_weights(const WeightsArguments& arguments) {
  const Tensor position = distances(without_undefined(arguments));
  const WeightsArguments a = select_rows(without_undefined(arguments));
  const ScoreOptions& options = a.options;
  const at::ScalarType type = accumulation_type(a.query.scalar_type());
  DenseWeights w;
  const Tensor visible = visible_entries(options, position);
  if (visible.defined()) hide(w, visible, a);
  w.query = seen(a.query.to(type), w.unseen_queries);
  w.key = seen(repeat_heads(a.key.to(type), a.query), w.unseen_keys);
  w.scale = options.scale
                ? at::Scalar(*options.scale)
                : at::Scalar(c10::SymFloat(1.0) / c10::SymFloat(a.query.sym_size(-1)).sqrt());
  // S = softcap tanh(scale QKᵀ / softcap) + bias − slopes |j − i − offset|
  Tensor scores = at::matmul(w.query * w.scale, w.key.mT());
  if (options.softcap) {
    w.tanh = (scores / *options.softcap).tanh();
    scores = w.tanh * *options.softcap;
  }
  if (options.bias) scores = scores + options.bias->to(type);
  if (options.slopes) {
    w.distance = position.abs().to(type);
    scores = scores - per_head(options.slopes->to(type), a.query) * w.distance;
  }
  if (w.hidden.defined()) scores = scores.masked_fill(w.hidden, -kInfinity);
  if (options.sink) scores = append_column(scores, per_head(options.sink->to(type), a.query));
  w.weights = w.hidden.defined() || options.sink ? softmax_of_finite(scores) : scores.softmax(-1);
  return w;
}

}  // namespace torch_ext::ops
