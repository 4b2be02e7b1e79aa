// The workspace of the Hopper backward.
#pragma once

#include "attention/problem.h"

namespace torch_ext::cuda::hopper {

// What the gradients need of a row of scores: P = 2^(c S - lse), dS = P (dP - delta).
//   lse    logsumexp / ln 2. inf, with which P = 0, where no key counted and after the last row;
//   NaN
//          where it is so large that P would be wrong: rows that are NaN are computed anew
//   delta  rowsum(do o) - dlse
// Of two rows at once, in the order in which a thread reads them.
struct alignas(16) RowStatistics {
  struct alignas(8) Pair {
    float of[2];
  };
  Pair lse, delta;
};

// Rows of a head that have statistics: no tile of at most 128 rows that begins before the last row
// ends after them, and they are whole tasks of the kernel that writes them.
constexpr int kStatisticsRows = 64;
inline int64_t statistics_rows(const Problem& p) {
  return (p.query_length + 127 + kStatisticsRows - 1) / kStatisticsRows * kStatisticsRows;
}

inline int64_t statistics_bytes(const Problem& p) {
  return p.query_heads() * (statistics_rows(p) / 2) * static_cast<int64_t>(sizeof(RowStatistics));
}

}  // namespace torch_ext::cuda::hopper
