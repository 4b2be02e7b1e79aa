#include "ops/broadcast.h"

#include <c10/core/SymBool.h>

#include <algorithm>
#include <initializer_list>

#include "ops/check_rules.h"

namespace torch_ext::ops {
namespace {

using c10::SymInt;
using rules::Sizes;

bool are_same(at::SymIntArrayRef a, at::SymIntArrayRef b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const SymInt& x, const SymInt& y) {
    return TORCH_GUARD_OR_FALSE(x.sym_eq(y));
  });
}

// Whether the batch dimensions of a tensor are query's as they are.
bool has_batch_of(const Tensor& query, const Tensor& tensor) {
  const size_t count = query.dim() - 3;
  return tensor.dim() == query.dim() &&
         are_same(query.sym_sizes().slice(0, count), tensor.sym_sizes().slice(0, count));
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
  for (Tensor* tensor : tensors) rules::expect_strided({op, *name++, *tensor});
  const Tensor& query = **tensors.begin();
  if (query.dim() < 3) return;
  if (std::all_of(tensors.begin(), tensors.end(),
                  [&](const Tensor* tensor) { return has_batch_of(query, *tensor); })) {
    return;
  }

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
    if (!are_same(sizes, expanded)) *tensor = tensor->expand_symint(expanded);
  }
}

}  // namespace

void broadcast_batch(AttentionArguments& arguments) {
  broadcast_batch_of(Attention::kName, {&arguments.query, &arguments.key, &arguments.value});
}

void broadcast_batch(WeightsArguments& arguments) {
  broadcast_batch_of(AttentionWeights::kName, {&arguments.query, &arguments.key});
}

}  // namespace torch_ext::ops
