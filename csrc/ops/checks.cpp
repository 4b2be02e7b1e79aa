#include "ops/checks.h"

#include <c10/core/ScalarType.h>
#include <c10/core/SymBool.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/problem.h"

namespace torch_ext::ops {
namespace {

using c10::SymInt;
using Sizes = std::vector<SymInt>;

// One argument of one operator, for the messages.
struct Argument {
  const char* op;
  const char* name;
  const Tensor& tensor;

  SymInt size(int64_t dim) const { return tensor.sym_size(dim); }
};

std::string dtype_name(at::ScalarType type) { return std::string(c10::getDtypeNames(type).first); }

bool is_16_bit(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

// Strided, so that sizes and strides may be asked for.
void expect_strided(const Argument& a) {
  TORCH_CHECK(a.tensor.defined(), a.op, ": expected ", a.name, " to be a tensor, but got None");
  TORCH_CHECK(!a.tensor.is_nested(), a.op, ": expected ", a.name,
              " to be a strided tensor, but got a nested tensor");
  TORCH_CHECK(a.tensor.layout() == at::kStrided, a.op, ": expected ", a.name,
              " to be a strided tensor, but got layout ", a.tensor.layout());
}

void expect_dtype(const Argument& a, at::ScalarType expected, const char* why) {
  TORCH_CHECK(a.tensor.scalar_type() == expected, a.op, ": expected ", a.name, " to have dtype ",
              dtype_name(expected), why, ", but got ", dtype_name(a.tensor.scalar_type()));
}

void expect_same_device(const Argument& a, const Tensor& query) {
  TORCH_CHECK(a.tensor.device() == query.device(), a.op, ": expected ", a.name, " to be on ",
              query.device(), " like query, but got ", a.tensor.device());
}

void expect_size(const Argument& a, int64_t dim, const SymInt& expected, const char* what,
                 const char* like) {
  TORCH_SYM_CHECK(a.size(dim).sym_eq(expected), a.op, ": expected ", a.name, " to have ", what, " ",
                  expected, " like ", like, ", but got ", a.name, " of shape ",
                  a.tensor.sym_sizes());
}

void check_query(const Argument& query) {
  expect_strided(query);
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
void check_like_query(const Argument& a, const Tensor& query) {
  expect_strided(a);
  expect_dtype(a, query.scalar_type(), " like query");
  expect_same_device(a, query);
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

// scores: (…, H, N, M)
void expect_broadcastable(const Argument& a, const Sizes& scores) {
  const int64_t dims = static_cast<int64_t>(scores.size());
  bool is_broadcastable = a.tensor.dim() <= dims;
  for (int64_t dim = 1; is_broadcastable && dim <= a.tensor.dim(); ++dim) {
    const SymInt size = a.size(-dim);
    if (TORCH_GUARD_OR_FALSE(size.sym_eq(1))) continue;
    is_broadcastable = size.sym_eq(scores[dims - dim]).expect_true(__FILE__, __LINE__);
  }
  TORCH_CHECK(is_broadcastable, a.op, ": expected ", a.name, " to be broadcastable to ",
              at::SymIntArrayRef(scores), ", but got ", a.name, " of shape ", a.tensor.sym_sizes());
}

void check_scale(const char* op, std::optional<double> scale, at::ScalarType type) {
  if (!scale) return;
  const bool is_double = type == at::kDouble;
  const double largest =
      is_double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  TORCH_CHECK(std::fabs(*scale) <= largest, op, ": expected scale to be finite in ",
              dtype_name(accumulation_type(type)), ", but got ", *scale);
}

void check_options(const char* op, const Options& options, const Tensor& query, const Tensor& key) {
  const at::ScalarType type = query.scalar_type();
  Sizes scores = query.sym_sizes().vec();
  scores.back() = key.sym_size(-2);
  if (const Tensor mask = value_or_undefined(options.mask); mask.defined()) {
    const Argument argument{op, "mask", mask};
    expect_strided(argument);
    expect_dtype(argument, at::kBool, " (true = attend; additive masks are called bias)");
    expect_same_device(argument, query);
    expect_broadcastable(argument, scores);
  }
  if (const Tensor bias = value_or_undefined(options.bias); bias.defined()) {
    const Argument argument{op, "bias", bias};
    expect_strided(argument);
    if (!(is_16_bit(type) && bias.scalar_type() == at::kFloat)) {
      expect_dtype(argument, type, is_16_bit(type) ? " like query, or float32" : " like query");
    }
    expect_same_device(argument, query);
    expect_broadcastable(argument, scores);
  }
  check_scale(op, options.scale, type);
}

// A tensor that the forward made, or the gradient of one.
void check_result(const Argument& a, const Tensor& query, at::ScalarType type,
                  const Sizes& expected) {
  expect_strided(a);
  expect_dtype(a, type, "");
  expect_same_device(a, query);
  bool is_equal = a.tensor.dim() == static_cast<int64_t>(expected.size());
  for (int64_t dim = 0; is_equal && dim < a.tensor.dim(); ++dim) {
    is_equal = a.size(dim).sym_eq(expected[dim]).expect_true(__FILE__, __LINE__);
  }
  TORCH_CHECK(is_equal, a.op, ": expected ", a.name, " to have shape ",
              at::SymIntArrayRef(expected), ", but got ", a.name, " of shape ",
              a.tensor.sym_sizes());
}

// Right-aligned broadcast of the batch dimensions; false where two of them differ and neither is 1.
bool broadcast_into(Sizes& batch, at::SymIntArrayRef sizes) {
  const size_t count = sizes.size() - 3;
  if (batch.size() < count) batch.insert(batch.begin(), count - batch.size(), SymInt(1));
  for (size_t i = 0; i < count; ++i) {
    SymInt& size = batch[batch.size() - count + i];
    if (TORCH_GUARD_OR_FALSE(sizes[i].sym_eq(1))) continue;
    if (TORCH_GUARD_OR_FALSE(size.sym_eq(1))) {
      size = sizes[i];
    } else if (!size.sym_eq(sizes[i]).expect_true(__FILE__, __LINE__)) {
      return false;
    }
  }
  return true;
}

void broadcast_batch_of(const char* op, std::initializer_list<Tensor*> tensors) {
  const char* const names[] = {"query", "key", "value"};
  const char* const* name = names;
  for (Tensor* tensor : tensors) expect_strided({op, *name++, *tensor});
  if ((*tensors.begin())->dim() < 3) return;

  Sizes batch;
  name = names;
  for (Tensor* tensor : tensors) {
    if (tensor->dim() == 2) *tensor = tensor->unsqueeze(0);
    if (tensor->dim() < 2) return;
    TORCH_CHECK(broadcast_into(batch, tensor->sym_sizes()), op, ": expected ", *name,
                " to have batch dimensions that broadcast with ", at::SymIntArrayRef(batch),
                ", but got ", *name, " of shape ", tensor->sym_sizes());
    ++name;
  }
  for (Tensor* tensor : tensors) {
    const at::SymIntArrayRef sizes = tensor->sym_sizes();
    Sizes expanded = batch;
    expanded.insert(expanded.end(), sizes.end() - 3, sizes.end());
    const bool is_same = std::equal(
        sizes.begin(), sizes.end(), expanded.begin(), expanded.end(),
        [](const SymInt& a, const SymInt& b) { return TORCH_GUARD_OR_FALSE(a.sym_eq(b)); });
    if (!is_same) *tensor = tensor->expand_symint(expanded);
  }
}

}  // namespace

at::ScalarType accumulation_type(at::ScalarType type) {
  return is_16_bit(type) ? at::kFloat : type;
}

void check(const AttentionArguments& a) {
  const char* op = Attention::kName;  // the name that most callers use
  check_query({op, "query", a.query});
  check_key({op, "key", a.key}, a.query);
  check_value({op, "value", a.value}, a.query, a.key);
  check_options(op, a.options, a.query, a.key);
}

void check(const BackwardArguments& a) {
  const char* op = AttentionBackward::kName;
  check_query({op, "query", a.query});
  check_key({op, "key", a.key}, a.query);
  check_value({op, "value", a.value}, a.query, a.key);
  check_options(op, a.options, a.query, a.key);

  const at::ScalarType type = a.query.scalar_type(), row_type = accumulation_type(type);
  Sizes output = a.query.sym_sizes().vec();
  output.back() = a.value.sym_size(-1);
  const Sizes rows(output.begin(), output.end() - 1);
  check_result({op, "output", a.output}, a.query, type, output);
  check_result({op, "logsumexp", a.logsumexp}, a.query, row_type, rows);
  check_result({op, "logsumexp_residual", a.logsumexp_residual}, a.query, row_type, rows);
  if (const Tensor grad = value_or_undefined(a.grad_output); grad.defined()) {
    check_result({op, "grad_output", grad}, a.query, type, output);
  }
  if (const Tensor grad = value_or_undefined(a.grad_logsumexp); grad.defined()) {
    check_result({op, "grad_logsumexp", grad}, a.query, row_type, rows);
  }
}

void check(const WeightsArguments& a) {
  const char* op = AttentionWeights::kName;
  check_query({op, "query", a.query});
  check_key({op, "key", a.key}, a.query);
  check_options(op, a.options, a.query, a.key);
  if (const Tensor rows = value_or_undefined(a.rows); rows.defined()) {
    expect_strided({op, "rows", rows});
    expect_dtype({op, "rows", rows}, at::kLong, "");
    expect_same_device({op, "rows", rows}, a.query);
    TORCH_CHECK(rows.dim() == 1, op, ": expected rows to have 1 dimension, but got rows of shape ",
                rows.sym_sizes());
  }
}

AttentionArguments broadcast_batch(AttentionArguments arguments) {
  broadcast_batch_of(Attention::kName, {&arguments.query, &arguments.key, &arguments.value});
  return arguments;
}

WeightsArguments broadcast_batch(WeightsArguments arguments) {
  broadcast_batch_of(AttentionWeights::kName, {&arguments.query, &arguments.key});
  return arguments;
}

}  // namespace torch_ext::ops
