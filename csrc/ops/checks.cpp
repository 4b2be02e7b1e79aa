#include "ops/checks.h"

#include <c10/core/SymBool.h>

#include "attention/problem.h"
#include "ops/check_rules.h"

namespace torch_ext::ops {
namespace {

using namespace rules;

bool is_16_bit(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

void check_query(const Argument& query) {
  expect_readable(query);
  const at::ScalarType type = query.tensor.scalar_type();
  TORCH_CHECK(type == at::kDouble || type == at::kFloat || is_16_bit(type), query.op,
              ": expected query to have dtype float64, float32, bfloat16 or float16, but got ",
              dtype_name(type));
  TORCH_CHECK(
      query.tensor.dim() >= 2, query.op,
      ": expected query to have at least 2 dimensions (rows, head size), but got query of shape ",
      query.tensor.sym_sizes());
  TORCH_CHECK(query.tensor.dim() <= 2 + kMaxLeadingDims, query.op,
              ": expected query to have at most ", kMaxLeadingDims,
              " dimensions before the last two, but got query of shape ", query.tensor.sym_sizes());
  TORCH_SYM_CHECK(query.size(-1).sym_gt(0), query.op,
                  ": expected query to have a head size of at least 1, but got query of shape ",
                  query.tensor.sym_sizes());
}

// What key and value have in common with query: all but heads, length and head size.
void check_like_query(Argument a, const Tensor& query) {
  expect_readable(a);
  expect_dtype(a, query.scalar_type(), " like query");
  expect_same_device(a, query);
  // What has heads `attention` has broadcast by now: it is not the one that refuses the rest.
  const bool is_broadcast = query.dim() > 2 && a.tensor.dim() >= 2;
  if (is_broadcast && a.op == Attention::kName) a.op = AttentionForward::kName;
  TORCH_CHECK(a.tensor.dim() == query.dim(), a.op, ": expected ", a.name, " to have ", query.dim(),
              " dimensions like query, but got ", a.name, " of shape ", a.tensor.sym_sizes());
  for (int64_t dim = 0; dim < query.dim() - 3; ++dim) {
    expect_size(a, dim, query.sym_size(dim), "a batch dimension of", "query");
  }
}

void check_key(const Argument& key, const Tensor& query) {
  check_like_query(key, query);
  expect_size(key, -1, query.sym_size(-1), "head size", "query");
  if (query.dim() == 2) return;
  const SymInt heads = query.sym_size(-3), key_heads = key.size(-3);
  if (TORCH_GUARD_OR_FALSE(heads.sym_eq(key_heads))) return;
  TORCH_SYM_CHECK(key_heads.sym_gt(0), key.op, ": expected key to have heads, since query has ",
                  heads, ", but got key of shape ", key.tensor.sym_sizes());
  TORCH_SYM_CHECK((heads % key_heads).sym_eq(0), key.op,
                  ": expected key to have a number of heads that divides query's ", heads,
                  ", but got key of shape ", key.tensor.sym_sizes());
}

void check_value(const Argument& value, const Tensor& query, const Tensor& key) {
  check_like_query(value, query);
  expect_size(value, -2, key.sym_size(-2), "length", "key");
  if (query.dim() > 2) expect_size(value, -3, key.sym_size(-3), "heads", "key");
}

void check_inputs(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                  const Options& options) {
  check_query({op, "query", query});
  check_key({op, "key", key}, query);
  check_value({op, "value", value}, query, key);
  check_options(op, options, query, key);
}

Sizes output_sizes(const Saved& saved) {
  Sizes sizes = saved.query.sym_sizes().vec();
  sizes.back() = saved.value.sym_size(-1);
  return sizes;
}

// Output, or something like it: (…, H, N, E)
void check_like_output(const char* op, const char* name, const Tensor& tensor, const Saved& saved) {
  expect_like({op, name, tensor}, saved.query, saved.query.scalar_type(), output_sizes(saved));
}

// Logsumexp, or something like it: (…, H, N)
void check_like_logsumexp(const char* op, const char* name, const Tensor& tensor,
                          const Saved& saved) {
  const Sizes sizes = output_sizes(saved);
  expect_like({op, name, tensor}, saved.query, accumulation_type(saved.query.scalar_type()),
              at::SymIntArrayRef(sizes).slice(0, sizes.size() - 1));
}

void check_saved(const char* op, const Saved& saved, const Options& options) {
  check_inputs(op, saved.query, saved.key, saved.value, options);
  check_like_output(op, "output", saved.output, saved);
  check_like_logsumexp(op, "logsumexp", saved.logsumexp, saved);
  check_like_logsumexp(op, "logsumexp_residual", saved.logsumexp_residual, saved);
}

void check_gradients(const char* op, const OptionalTensor& grad_output,
                     const OptionalTensor& grad_logsumexp, const Saved& saved) {
  if (const Tensor& grad = value_or_undefined(grad_output); grad.defined()) {
    check_like_output(op, "grad_output", grad, saved);
  }
  if (const Tensor& grad = value_or_undefined(grad_logsumexp); grad.defined()) {
    check_like_logsumexp(op, "grad_logsumexp", grad, saved);
  }
}

void check_tangent(const char* op, std::string_view primal_name, const OptionalTensor& optional,
                   const Tensor& primal, const Tensor& query) {
  const Tensor& tangent = value_or_undefined(optional);
  if (!tangent.defined()) return;
  const std::string name = std::string(primal_name) + "_tangent";
  TORCH_CHECK(primal.defined(), op, ": expected ", name, " to be None, since ", primal_name,
              " is None, but got a tensor");
  expect_like({op, name, tangent}, query, primal.scalar_type(), primal.sym_sizes());
}

void check_tangents(const char* op, const Tangents& tangents, const Saved& saved,
                    const ScoreOptions& options) {
  const Tensor& query = saved.query;
  check_tangent(op, "query", tangents.query, query, query);
  check_tangent(op, "key", tangents.key, saved.key, query);
  check_tangent(op, "value", tangents.value, saved.value, query);
  check_tangent(op, "bias", tangents.bias, value_or_undefined(options.bias), query);
  check_tangent(op, "slopes", tangents.slopes, value_or_undefined(options.slopes), query);
  check_tangent(op, "sink", tangents.sink, value_or_undefined(options.sink), query);
}

}  // namespace

at::ScalarType accumulation_type(at::ScalarType type) {
  return is_16_bit(type) ? at::kFloat : type;
}

bool goes_with_query(at::ScalarType type, at::ScalarType query_type) {
  return type == query_type || type == accumulation_type(query_type);
}

void check(const AttentionArguments& a) {
  // The name that most callers use.
  check_inputs(Attention::kName, a.query, a.key, a.value, a.options);
}

void check(const BackwardArguments& a) {
  const char* op = AttentionBackward::kName;
  check_saved(op, a.saved, a.options);
  check_gradients(op, a.grad_output, a.grad_logsumexp, a.saved);
}

void check(const TangentArguments& a) {
  const char* op = AttentionTangent::kName;
  check_saved(op, a.saved, a.options);
  check_tangents(op, a.tangents, a.saved, a.options);
}

void check(const SecondOrderArguments& a) {
  const char* op = AttentionSecondOrder::kName;
  check_saved(op, a.saved, a.options);
  check_gradients(op, a.grad_output, a.grad_logsumexp, a.saved);
  check_tangents(op, a.tangents, a.saved, a.options);
}

void check(const WeightsArguments& a) {
  const char* op = AttentionWeights::kName;
  check_query({op, "query", a.query});
  check_key({op, "key", a.key}, a.query);
  check_scores(op, a.options, a.query, a.key);
  if (const Tensor& rows = value_or_undefined(a.rows); rows.defined()) {
    const Argument argument{op, "rows", rows};
    expect_readable(argument);
    expect_dtype(argument, at::kLong);
    expect_same_device(argument, a.query);
    TORCH_CHECK(rows.dim() == 1, op, ": expected rows to have 1 dimension, but got rows of shape ",
                rows.sym_sizes());
  }
}

void check(const DropoutMaskArguments& a) {
  const char* op = DropoutMask::kName;
  expect_readable({op, "seed", a.seed});
  expect_dtype({op, "seed", a.seed}, at::kLong);
  const auto expect_count = [&](const char* name, const SymInt& count) {
    TORCH_SYM_CHECK(count.sym_ge(0), op, ": expected ", name, " to be at least 0, but got ", count);
  };
  expect_count("heads", a.heads);
  expect_count("queries", a.queries);
  expect_count("keys", a.keys);
  check_dropout_p(op, a.dropout_p);
}

}  // namespace torch_ext::ops
