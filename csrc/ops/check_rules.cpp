#include "ops/check_rules.h"

#include <c10/core/ScalarType.h>
#include <c10/core/SymBool.h>

#include "ops/checks.h"

namespace torch_ext::ops::rules {
namespace {

constexpr c10::DispatchKeySet kStandsForAnother{c10::DispatchKey::Python,
                                                c10::DispatchKey::Functionalize};

// Whether a storage that was resized, as to free it, still holds what sizes and strides reach.
// Those tensors that only stand for others, and those with symbols for sizes, are not asked.
bool has_memory(const Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  if (!impl.has_storage() || impl.has_symbolic_sizes_strides() ||
      impl.key_set().has_any(kStandsForAnother)) {
    return true;
  }
  const at::IntArrayRef sizes = impl.sizes(), strides = impl.strides();
  int64_t last = impl.storage_offset();
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] == 0) return true;
    last += (sizes[dim] - 1) * strides[dim];
  }
  return static_cast<size_t>(last + 1) * impl.itemsize() <= impl.unsafe_storage().nbytes();
}

}  // namespace

std::string dtype_name(at::ScalarType type) { return std::string(c10::getDtypeNames(type).first); }

void expect_strided(const Argument& a) {
  TORCH_CHECK(a.tensor.defined(), a.op, ": expected ", a.name, " to be a tensor, but got None");
  TORCH_CHECK(!a.tensor.is_nested(), a.op, ": expected ", a.name,
              " to be a strided tensor, but got a nested tensor");
  TORCH_CHECK(a.tensor.layout() == at::kStrided, a.op, ": expected ", a.name,
              " to be a strided tensor, but got layout ", a.tensor.layout());
}

void expect_readable(const Argument& a) {
  expect_strided(a);
  TORCH_CHECK(has_memory(a.tensor), a.op, ": expected ", a.name, " of shape ", a.tensor.sizes(),
              " to have memory for its elements, but got a storage that was resized to ",
              a.tensor.storage().nbytes(), " bytes");
}

void expect_dtype(const Argument& a, at::ScalarType expected, std::string_view why) {
  TORCH_CHECK(a.tensor.scalar_type() == expected, a.op, ": expected ", a.name, " to have dtype ",
              dtype_name(expected), why, ", but got ", dtype_name(a.tensor.scalar_type()));
}

void expect_dtype_with_query(const Argument& a, const Tensor& query) {
  const at::ScalarType type = query.scalar_type(), wide = accumulation_type(type);
  if (goes_with_query(a.tensor.scalar_type(), type)) return;
  expect_dtype(a, type,
               type == wide ? " like query" : c10::str(" like query, or ", dtype_name(wide)));
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

void expect_like(const Argument& a, const Tensor& query, at::ScalarType type,
                 at::SymIntArrayRef expected) {
  expect_readable(a);
  expect_dtype(a, type);
  expect_same_device(a, query);
  bool is_equal = a.tensor.dim() == static_cast<int64_t>(expected.size());
  for (int64_t dim = 0; is_equal && dim < a.tensor.dim(); ++dim) {
    is_equal = a.size(dim).sym_eq(expected[dim]).expect_true(__FILE__, __LINE__);
  }
  TORCH_CHECK(is_equal, a.op, ": expected ", a.name, " to have shape ", expected, ", but got ",
              a.name, " of shape ", a.tensor.sym_sizes());
}

void expect_broadcastable(const Argument& a, const Sizes& target) {
  const int64_t dims = static_cast<int64_t>(target.size());
  bool is_broadcastable = a.tensor.dim() <= dims;
  for (int64_t dim = 1; is_broadcastable && dim <= a.tensor.dim(); ++dim) {
    const SymInt size = a.size(-dim);
    if (TORCH_GUARD_OR_FALSE(size.sym_eq(1))) continue;
    is_broadcastable = size.sym_eq(target[dims - dim]).expect_true(__FILE__, __LINE__);
  }
  TORCH_CHECK(is_broadcastable, a.op, ": expected ", a.name, " to be broadcastable to ",
              at::SymIntArrayRef(target), ", but got ", a.name, " of shape ", a.tensor.sym_sizes());
}

}  // namespace torch_ext::ops::rules
