// What the four reference operators share: one row of scores and weights, and sums over rows.
//
// Every visible key of a row is an Entry; what is hidden is never read.
#pragma once

#include <cstdlib>
#include <vector>

#include "attention/philox.h"
#include "attention/reference_numbers.h"

namespace torch_ext::reference {

struct Entry {
  int64_t key;           // j
  double distance;       // |j - i - offset|
  double score;          // S = s tanh(S0 / s) + bias - slope distance, where S0 = scale Q K^T
  double cap_slope;      // t = dS / dS0
  double cap_curvature;  // dt / dS0
  double keep;           // Z, 0 or 1 / (1 - p)
  double weight = 0;     // P
};

struct Row {
  std::vector<Entry> entries;
  double sink = -kInfinity;  // the sink's score; -inf: there is none
  double sink_weight = 0;
};

inline bool is_visible(const Problem& p, int64_t head, int64_t i, int64_t j) {
  const int64_t distance = j - i - p.offset;
  if (distance < -p.left || distance > p.right) return false;
  if (p.mask && query_matrix(p, p.mask, head)(i, j) == 0) return false;
  return !(p.bias && query_matrix(p, p.bias, head)(i, j) == -kInfinity);
}

// Z(i, j)
inline double dropout_scale(const Problem& p, int64_t head, int64_t i, int64_t j) {
  if (p.dropout_p == 0) return 1;
  const auto seed = static_cast<const int64_t*>(p.seed.data)[head_offset(p, p.seed, head)];
  const int64_t head_of_batch = head % p.leading_sizes[p.leading_dims - 1];
  const bool keeps = dropout_keeps(static_cast<uint64_t>(seed), head_of_batch, i, j,
                                   dropout_threshold(p.dropout_p));
  return keeps ? 1 / (1 - p.dropout_p) : 0;
}

inline Entry make_entry(const Problem& p, int64_t head, int64_t i, int64_t j) {
  Entry entry{};
  entry.key = j;
  entry.distance = static_cast<double>(std::abs(j - i - p.offset));
  entry.keep = dropout_scale(p, head, i, j);

  const Matrix q = query_matrix(p, p.query, head), k = key_matrix(p, p.key, head);
  entry.score = p.scale * dot(q, i, k, j, p.head_size);
  entry.cap_slope = 1;
  if (p.softcap > 0) {
    const double tanh = std::tanh(entry.score / p.softcap);
    entry.score = p.softcap * tanh;
    entry.cap_slope = (1 - tanh) * (1 + tanh);
    entry.cap_curvature = -2 * tanh / p.softcap * entry.cap_slope;
  }
  if (p.bias) entry.score += query_matrix(p, p.bias, head)(i, j);
  if (p.slopes) entry.score -= query_matrix(p, p.slopes, head)() * entry.distance;
  return entry;
}

// Row i with its scores, but without weights.
inline Row score_row(const Problem& p, int64_t head, int64_t i) {
  Row row;
  for (int64_t j = 0; j < p.key_length; ++j) {
    if (is_visible(p, head, i, j)) row.entries.push_back(make_entry(p, head, i, j));
  }
  if (p.sink) row.sink = query_matrix(p, p.sink, head)();
  return row;
}

// Row i with its weights P = exp((S - lse) - residual). `saved` has what the forward wrote. A row
// in which nothing contributed has no entries and no sink: its derivatives are 0.
template <class Saved>
Row weighted_row(const Saved& saved, int64_t head, int64_t i) {
  const double lse = query_matrix(saved, saved.logsumexp, head)(i);
  const double residual = query_matrix(saved, saved.logsumexp_residual, head)(i);
  if (lse == -kInfinity) return {};
  Row row = score_row(saved, head, i);
  for (Entry& entry : row.entries) entry.weight = std::exp((entry.score - lse) - residual);
  if (row.sink != -kInfinity) row.sink_weight = std::exp((row.sink - lse) - residual);
  return row;
}

// Sums over rows, rounded when they are complete: gradients of one key head, summed over the query
// heads that share it, and gradients of one query head's slope and sink.
struct Sums {
  std::vector<Sum> key, value;  // (M, D), (M, E)
  Sum slope = 0, sink = 0;
};

inline void store_rows(const Matrix& target, int64_t rows, int64_t cols,
                       const std::vector<Sum>& x) {
  if (!target) return;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) target.set(i, c, x[i * cols + c]);
  }
}

// x = 0 in all heads; dimensions along which x is broadcast have one element.
inline void clear(const Problem& p, const Operand& x) {
  if (!x) return;
  for (int64_t head = 0; head < p.query_heads(); ++head) {
    for (int64_t i = 0; i < (x.row_stride ? p.query_length : 1); ++i) {
      for (int64_t j = 0; j < (x.col_stride ? p.key_length : 1); ++j) {
        query_matrix(p, x, head).set(i, j, 0);
      }
    }
  }
}

// Calls visit_row(head, i, sums) for every row and stores the sums. What heads share is cleared
// first; rows and heads add to it.
template <class VisitRow>
void sum_over_rows(const BackwardProblem& p, const VisitRow& visit_row) {
  for (const Operand* x : {&p.grad_bias, &p.grad_slopes, &p.grad_sink}) clear(p, *x);
  for (int64_t key_head = 0; key_head < p.key_heads(); ++key_head) {
    const int64_t first = key_head * p.group;
    Sums sums;
    sums.key.resize(p.key_length * p.head_size);
    sums.value.resize(p.key_length * p.value_head_size);
    for (int64_t head = first; head < first + p.group; ++head) {
      sums.slope = sums.sink = 0;
      for (int64_t i = 0; i < p.query_length; ++i) visit_row(head, i, sums);
      if (p.grad_slopes) query_matrix(p, p.grad_slopes, head).add(0, 0, sums.slope);
      if (p.grad_sink) query_matrix(p, p.grad_sink, head).add(0, 0, sums.sink);
    }
    store_rows(key_matrix(p, p.grad_key, first), p.key_length, p.head_size, sums.key);
    store_rows(key_matrix(p, p.grad_value, first), p.key_length, p.value_head_size, sums.value);
  }
}

}  // namespace torch_ext::reference
