// The rules that one argument alone can break, with messages that name it. Not for use outside the
// checks.
#pragma once

#include <c10/core/SymInt.h>

#include <string>
#include <string_view>
#include <vector>

#include "ops/attention.h"

namespace torch_ext::ops::rules {

using c10::SymInt;
using Sizes = std::vector<SymInt>;

// One argument of one operator, for the messages.
struct Argument {
  const char* op;
  std::string_view name;
  const Tensor& tensor;

  SymInt size(int64_t dim) const { return tensor.sym_size(dim); }
};

std::string dtype_name(at::ScalarType type);

// Strided, so that sizes and strides may be asked for.
void expect_strided(const Argument& a);

// And with memory for all that these reach: a storage can be resized under its tensors.
void expect_readable(const Argument& a);

void expect_dtype(const Argument& a, at::ScalarType expected, std::string_view why = "");

// Query's dtype, or float32 where query has 16 bits.
void expect_dtype_with_query(const Argument& a, const Tensor& query);

void expect_same_device(const Argument& a, const Tensor& query);

void expect_size(const Argument& a, int64_t dim, const SymInt& expected, const char* what,
                 const char* like);

// On query's device, of this dtype and shape.
void expect_like(const Argument& a, const Tensor& query, at::ScalarType type,
                 at::SymIntArrayRef expected);

void expect_broadcastable(const Argument& a, const Sizes& target);

// Mask, bias, window, scale, softcap, slopes and sink.
void check_scores(const char* op, const ScoreOptions& options, const Tensor& query,
                  const Tensor& key);

void check_dropout_p(const char* op, double dropout_p);

// All options.
void check_options(const char* op, const Options& options, const Tensor& query, const Tensor& key);

}  // namespace torch_ext::ops::rules
