#include "attention/reference.h"

#include "attention/reference_rows.h"

namespace torch_ext {
namespace reference {
namespace {

// Writes L and r = max + log_sum - L, what rounding L to its type loses.
void store_logsumexp(const ForwardProblem& p, int64_t head, int64_t i, double max, double log_sum) {
  const Matrix lse = query_matrix(p, p.logsumexp, head);
  lse.set(i, 0, max + log_sum);
  const double rounded = lse(i);
  const double large = std::fabs(max) > std::fabs(log_sum) ? max : log_sum;
  const double small = std::fabs(max) > std::fabs(log_sum) ? log_sum : max;
  const double residual = std::isfinite(rounded) ? (large - rounded) + small : 0;
  query_matrix(p, p.logsumexp_residual, head).set(i, 0, residual);
}

void forward_row(const ForwardProblem& p, int64_t head, int64_t i) {
  Row row = score_row(p, head, i);
  double max = row.sink;
  bool is_nan = std::isnan(max);
  for (const Entry& entry : row.entries) {
    max = entry.score > max || std::isnan(max) ? entry.score : max;
    is_nan |= std::isnan(entry.score);
  }
  if (max == -kInfinity && !is_nan) row.entries.clear();  // nothing but -inf: nothing to see

  Sum sum = row.sink == -kInfinity ? 0 : std::exp(row.sink - max);
  for (const Entry& entry : row.entries) sum += std::exp(entry.score - max);
  store_logsumexp(p, head, i, max, sum == 0 ? 0 : static_cast<double>(std::log(sum)));

  const Matrix v = key_matrix(p, p.value, head), o = query_matrix(p, p.output, head);
  for (int64_t e = 0; e < p.value_head_size; ++e) {
    Sum weighted = 0;
    for (const Entry& entry : row.entries) {
      weighted += std::exp(entry.score - max) * entry.keep * v(entry.key, e);
    }
    o.set(i, e, row.entries.empty() ? 0 : weighted / sum);
  }
}

// Writes row i of the query gradient; the rest is accumulated.
void backward_row(const BackwardProblem& p, int64_t head, int64_t i, Sums& sums) {
  const Matrix q = query_matrix(p, p.query, head), k = key_matrix(p, p.key, head);
  const Matrix v = key_matrix(p, p.value, head), d_o = query_matrix(p, p.grad_output, head);
  const Matrix o = query_matrix(p, p.output, head);
  const Row row = weighted_row(p, head, i);
  // delta = rowsum(dO∘O) - dL
  double delta = row.entries.empty() ? 0 : dot(d_o, i, o, i, p.value_head_size);
  if (p.grad_logsumexp) delta -= query_matrix(p, p.grad_logsumexp, head)(i);

  std::vector<Sum> dq(p.head_size);
  for (const Entry& entry : row.entries) {
    const int64_t j = entry.key;
    const double dp = entry.keep * dot(d_o, i, v, j, p.value_head_size);  // dP = (dO Vᵀ)∘Z
    const double ds = entry.weight * (dp - delta);                        // dS = P∘(dP - delta)
    const double ds0 = entry.cap_slope * ds;
    for (int64_t d = 0; d < p.head_size; ++d) {
      dq[d] += p.scale * ds0 * k(j, d);
      sums.key[j * p.head_size + d] += p.scale * ds0 * q(i, d);
    }
    for (int64_t e = 0; d_o && e < p.value_head_size; ++e) {
      sums.value[j * p.value_head_size + e] += entry.weight * entry.keep * d_o(i, e);
    }
    if (p.grad_bias) query_matrix(p, p.grad_bias, head).add(i, j, ds);
    sums.slope -= ds * entry.distance;
  }
  if (row.sink != -kInfinity) sums.sink -= row.sink_weight * delta;

  if (!p.grad_query) return;
  const Matrix grad_query = query_matrix(p, p.grad_query, head);
  for (int64_t d = 0; d < p.head_size; ++d) grad_query.set(i, d, dq[d]);
}

}  // namespace
}  // namespace reference

void reference_forward(const ForwardProblem& p) {
  for (int64_t head = 0; head < p.query_heads(); ++head) {
    for (int64_t i = 0; i < p.query_length; ++i) reference::forward_row(p, head, i);
  }
}

void reference_backward(const BackwardProblem& p) {
  reference::sum_over_rows(p, [&](int64_t head, int64_t i, reference::Sums& sums) {
    reference::backward_row(p, head, i, sums);
  });
}

}  // namespace torch_ext
