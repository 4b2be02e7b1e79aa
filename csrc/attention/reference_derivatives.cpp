// The derivatives of the derivatives: tangent (forward mode) and second order. X' is the tangent of
// X, dX its cotangent.
#include "attention/reference.h"
#include "attention/reference_rows.h"

namespace torch_ext {
namespace reference {
namespace {

// Tangents of the scores of one row, entry by entry.
struct RowTangent {
  std::vector<double> raw_score;  // S0' = scale (Q' Kᵀ + Q K'ᵀ)
  std::vector<double> score;      // S' = t∘S0' + bias' - slope' distance
  double sink = 0;
  Sum mean = 0;  // mu = rowsum(P∘S'), the sink's share included; this is L'
};

template <class DirectedProblem>
RowTangent tangent_of(const DirectedProblem& p, int64_t head, int64_t i, const Row& row) {
  const Direction& direction = p.direction;
  const Matrix q = query_matrix(p, p.query, head), k = key_matrix(p, p.key, head);
  const Matrix qt = query_matrix(p, direction.query, head), kt = key_matrix(p, direction.key, head);

  RowTangent tangent;
  for (const Entry& entry : row.entries) {
    const int64_t j = entry.key;
    const double raw = p.scale * (dot(qt, i, k, j, p.head_size) + dot(q, i, kt, j, p.head_size));
    double score = entry.cap_slope * raw;
    if (direction.bias) score += query_matrix(p, direction.bias, head)(i, j);
    if (direction.slopes) score -= query_matrix(p, direction.slopes, head)() * entry.distance;
    tangent.raw_score.push_back(raw);
    tangent.score.push_back(score);
    tangent.mean += entry.weight * score;
  }
  if (direction.sink && row.sink != -kInfinity) {
    tangent.sink = query_matrix(p, direction.sink, head)();
    tangent.mean += row.sink_weight * tangent.sink;
  }
  return tangent;
}

// O' = (P'∘Z) V + (P∘Z) V', where P' = P∘(S' - mu), and L' = mu.
template <class DirectedProblem>
void store_tangents(const DirectedProblem& p, int64_t head, int64_t i, const Row& row,
                    const RowTangent& tangent) {
  if (p.logsumexp_tangent) query_matrix(p, p.logsumexp_tangent, head).set(i, 0, tangent.mean);
  if (!p.output_tangent) return;
  const Matrix v = key_matrix(p, p.value, head), vt = key_matrix(p, p.direction.value, head);
  const Matrix ot = query_matrix(p, p.output_tangent, head);
  for (int64_t e = 0; e < p.value_head_size; ++e) {
    Sum sum = 0;
    for (size_t n = 0; n < row.entries.size(); ++n) {
      const Entry& entry = row.entries[n];
      const double kept = entry.weight * entry.keep;
      sum += kept * (tangent.score[n] - tangent.mean) * v(entry.key, e);
      if (vt) sum += kept * vt(entry.key, e);
    }
    ot.set(i, e, sum);
  }
}

void tangent_row(const TangentProblem& p, int64_t head, int64_t i) {
  const Row row = weighted_row(p, head, i);
  store_tangents(p, head, i, row, tangent_of(p, head, i, row));
}

// The gradient of <dO, O'> + <dL, L'> with respect to the scores of one row, entry by entry.
struct ScoreGradient {
  std::vector<double> score;  // T = P∘(G - epsilon)
  std::vector<double> first;  // dS = P∘(dP - delta), the gradient of the first order
  double sink = 0;
};

// With dP = (dO Vᵀ)∘Z, dP' = (dO V'ᵀ)∘Z and delta = rowsum(P∘dP) - dL:
//   G = dP' + (S' - mu)∘(dP - delta),  epsilon = rowsum(P∘G)
// The sink has dP = dP' = 0.
ScoreGradient score_gradient(const SecondOrderProblem& p, int64_t head, int64_t i, const Row& row,
                             const RowTangent& tangent) {
  const Matrix v = key_matrix(p, p.value, head), vt = key_matrix(p, p.direction.value, head);
  const Matrix d_o = query_matrix(p, p.grad_output, head);

  std::vector<double> dp;
  Sum delta = p.grad_logsumexp ? -query_matrix(p, p.grad_logsumexp, head)(i) : 0;
  for (const Entry& entry : row.entries) {
    dp.push_back(entry.keep * dot(d_o, i, v, entry.key, p.value_head_size));
    delta += entry.weight * dp.back();
  }

  ScoreGradient gradient;
  Sum epsilon = 0;
  for (size_t n = 0; n < row.entries.size(); ++n) {
    const Entry& entry = row.entries[n];
    const double dpt = entry.keep * dot(d_o, i, vt, entry.key, p.value_head_size);
    const Sum g = dpt + (tangent.score[n] - tangent.mean) * (dp[n] - delta);
    epsilon += entry.weight * g;
    gradient.score.push_back(g);
    gradient.first.push_back(entry.weight * (dp[n] - delta));
  }
  const Sum g_sink = -(tangent.sink - tangent.mean) * delta;
  if (row.sink != -kInfinity) epsilon += row.sink_weight * g_sink;

  for (size_t n = 0; n < row.entries.size(); ++n) {
    gradient.score[n] = row.entries[n].weight * (gradient.score[n] - epsilon);
  }
  gradient.sink = row.sink_weight * (g_sink - epsilon);
  return gradient;
}

// Writes row i of the query gradient and of the tangents; the rest is accumulated. Through the cap,
// T becomes T0 = t∘T + dS∘S0'∘dt/dS0.
//   grad Q = scale ((t∘dS) K' + T0 K),  grad K = scale ((t∘dS)ᵀ Q' + T0ᵀ Q),  grad V = (P'∘Z)ᵀ dO
void second_order_row(const SecondOrderProblem& p, int64_t head, int64_t i, Sums& sums) {
  const Row row = weighted_row(p, head, i);
  const RowTangent tangent = tangent_of(p, head, i, row);
  const ScoreGradient gradient = score_gradient(p, head, i, row, tangent);
  const Matrix q = query_matrix(p, p.query, head), qt = query_matrix(p, p.direction.query, head);
  const Matrix k = key_matrix(p, p.key, head), kt = key_matrix(p, p.direction.key, head);
  const Matrix d_o = query_matrix(p, p.grad_output, head);

  std::vector<Sum> dq(p.head_size);
  for (size_t n = 0; n < row.entries.size(); ++n) {
    const Entry& entry = row.entries[n];
    const int64_t j = entry.key;
    const double ds0 = entry.cap_slope * gradient.first[n];
    const double t0 = entry.cap_slope * gradient.score[n] +
                      gradient.first[n] * tangent.raw_score[n] * entry.cap_curvature;
    for (int64_t d = 0; d < p.head_size; ++d) {
      dq[d] += p.scale * (t0 * k(j, d) + (kt ? ds0 * kt(j, d) : 0));
      sums.key[j * p.head_size + d] += p.scale * (t0 * q(i, d) + (qt ? ds0 * qt(i, d) : 0));
    }
    const double weight_tangent = entry.weight * (tangent.score[n] - tangent.mean);  // P'
    for (int64_t e = 0; d_o && e < p.value_head_size; ++e) {
      sums.value[j * p.value_head_size + e] += weight_tangent * entry.keep * d_o(i, e);
    }
    if (p.grad_bias) query_matrix(p, p.grad_bias, head).add(i, j, gradient.score[n]);
    sums.slope -= gradient.score[n] * entry.distance;
  }
  if (row.sink != -kInfinity) sums.sink += gradient.sink;

  store_tangents(p, head, i, row, tangent);
  if (!p.grad_query) return;
  const Matrix grad_query = query_matrix(p, p.grad_query, head);
  for (int64_t d = 0; d < p.head_size; ++d) grad_query.set(i, d, dq[d]);
}

}  // namespace
}  // namespace reference

void reference_tangent(const TangentProblem& p) {
  for (int64_t head = 0; head < p.query_heads(); ++head) {
    for (int64_t i = 0; i < p.query_length; ++i) reference::tangent_row(p, head, i);
  }
}

void reference_second_order(const SecondOrderProblem& p) {
  reference::sum_over_rows(p, [&](int64_t head, int64_t i, reference::Sums& sums) {
    reference::second_order_row(p, head, i, sums);
  });
}

}  // namespace torch_ext
