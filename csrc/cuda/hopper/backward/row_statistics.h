// The workspace of the Hopper backward.
#pragma once

#include "attention/problem.h"

namespace torch_ext::cuda::hopper {

// What the gradients need of a row of scores: P = 2^(S scale / ln 2 - lse), dS = P (dP - delta).
struct RowStatistics {
  float lse;    // logsumexp / ln 2; inf, with which P = 0, where no key counted
  float delta;  // rowsum(do o) - dlse
};

// How many a head has, those after its last row included: no tile of at most 128 rows that begins
// before that row ends after them.
inline int64_t statistics_rows(const Problem& p) { return (p.query_length + 127 + 15) / 16 * 16; }

}  // namespace torch_ext::cuda::hopper
