// The rules of the options.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/check_rules.h"
#include "ops/checks.h"

namespace torch_ext::ops::rules {
namespace {

// Smallest and largest normal number of the type in which scores are summed.
struct Range {
  double smallest, largest;
};

template <class T>
constexpr Range kRange{std::numeric_limits<T>::min(), std::numeric_limits<T>::max()};

Range accumulation_range(at::ScalarType type) {
  return type == at::kDouble ? kRange<double> : kRange<float>;
}

void check_scale(const char* op, std::optional<double> scale, at::ScalarType type) {
  if (!scale) return;
  TORCH_CHECK(std::fabs(*scale) <= accumulation_range(type).largest, op,
              ": expected scale to be finite in ", dtype_name(accumulation_type(type)),
              ", but got ", *scale);
}

void check_softcap(const char* op, std::optional<double> softcap, at::ScalarType type) {
  if (!softcap) return;
  const Range range = accumulation_range(type);
  TORCH_CHECK(*softcap >= range.smallest && *softcap <= range.largest, op,
              ": expected softcap to be positive and finite in ",
              dtype_name(accumulation_type(type)), " (None for no cap), but got ", *softcap);
}

void check_extent(const char* op, const char* name, const std::optional<c10::SymInt>& extent) {
  if (!extent) return;
  TORCH_SYM_CHECK(extent->sym_ge(0), op, ": expected ", name,
                  " to be at least 0 (None for no limit), but got ", *extent);
}

// slopes and sink: (…, H)
void check_number_per_head(const char* op, const char* name, const OptionalTensor& optional,
                           const Tensor& query) {
  const Tensor& tensor = value_or_undefined(optional);
  if (!tensor.defined()) return;
  const Argument argument{op, name, tensor};
  expect_readable(argument);
  expect_dtype_with_query(argument, query);
  expect_same_device(argument, query);
  const at::SymIntArrayRef sizes = query.sym_sizes();
  Sizes heads(sizes.begin(), sizes.end() - 2);
  if (heads.empty()) heads.emplace_back(1);  // a 2-D query is one head
  expect_broadcastable(argument, heads);
}

// seed: (…). `attention` draws a missing one before it calls attention_forward.
void check_seed(const char* op, const Options& options, const Tensor& query) {
  const Tensor& seed = value_or_undefined(options.seed);
  TORCH_CHECK(seed.defined(), op == Attention::kName ? AttentionForward::kName : op,
              ": expected seed to be a tensor, since dropout_p is ", options.dropout_p,
              ", but got None. Only ", Attention::kName,
              " draws one by itself; for others, "
              "torch.randint(2**63 - 1, query.shape[:-3], device=query.device) makes one");
  const Argument argument{op, "seed", seed};
  expect_readable(argument);
  expect_dtype(argument, at::kLong);
  expect_same_device(argument, query);
  const at::SymIntArrayRef sizes = query.sym_sizes();
  expect_broadcastable(argument,
                       Sizes(sizes.begin(), sizes.end() - std::min<int64_t>(3, query.dim())));
}

}  // namespace

void check_scores(const char* op, const ScoreOptions& options, const Tensor& query,
                  const Tensor& key) {
  const auto expect_broadcastable_to_scores = [&](const Argument& argument) {
    Sizes scores = query.sym_sizes().vec();
    scores.back() = key.sym_size(-2);
    expect_broadcastable(argument, scores);
  };
  if (const Tensor& mask = value_or_undefined(options.mask); mask.defined()) {
    const Argument argument{op, "mask", mask};
    expect_readable(argument);
    expect_dtype(argument, at::kBool, " (true = attend; additive masks are called bias)");
    expect_same_device(argument, query);
    expect_broadcastable_to_scores(argument);
  }
  if (const Tensor& bias = value_or_undefined(options.bias); bias.defined()) {
    const Argument argument{op, "bias", bias};
    expect_readable(argument);
    expect_dtype_with_query(argument, query);
    expect_same_device(argument, query);
    expect_broadcastable_to_scores(argument);
  }
  check_extent(op, "window_left", options.window_left);
  check_extent(op, "window_right", options.window_right);
  check_scale(op, options.scale, query.scalar_type());
  check_softcap(op, options.softcap, query.scalar_type());
  check_number_per_head(op, "slopes", options.slopes, query);
  check_number_per_head(op, "sink", options.sink, query);
}

void check_dropout_p(const char* op, double dropout_p) {
  TORCH_CHECK(dropout_p >= 0 && dropout_p < 1, op,
              ": expected dropout_p to be at least 0 and less than 1, but got ", dropout_p);
}

void check_options(const char* op, const Options& options, const Tensor& query, const Tensor& key) {
  check_scores(op, options, query, key);
  check_dropout_p(op, options.dropout_p);
  if (options.dropout_p > 0) check_seed(op, options, query);
}

}  // namespace torch_ext::ops::rules
