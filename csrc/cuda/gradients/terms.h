// The arithmetic of one entry of the scores in the gradients.
//
// First order:   p = exp((s - lse) - residual),  ds = p (z dp - delta),  ds0 = t ds
// Second order:  s' = t scale (q' k^T + q k'^T) + b' - slope' |distance|,  mean = center + mu
//                g = z dp' + (s' - mean) (z dp - delta),  ds = p (g - epsilon)
//                ds0 = t ds + t' scale (q' k^T + q k'^T) p (z dp - delta),  ds0' = t p (z dp -
//                delta)
// with dp = do v^T, dp' = do v'^T, the keep mask z of dropout, and softcap's slope t = 1 - u^2 and
// curvature t' = -2 u t / softcap, where u = tanh(scale q k^T / softcap).
#pragma once

#include "cuda/gradients/rows.h"
#include "cuda/tile/scores.h"

namespace torch_ext::cuda {

template <class T>
struct Products {
  T s = 0, dp = 0, s_dot = 0, dp_dot = 0;  // q k^T, do v^T, q' k^T + q k'^T, do v'^T
};

template <class T>
struct Terms {
  T p = 0;        // 0 where hidden, as everything else
  T kept = 0;     // z p
  T centred = 0;  // z dp - delta
  T dp = 0;       // z dp
  T dp_dot = 0;   // z dp'
  T s_dot = 0;    // s' - center
  T apart = 0;    // s' - mean
  T ds = 0;       // what the bias receives
  T ds0 = 0;      // times k: of grad_query; times q: of grad_key
  T ds0_dot = 0;  // times k': of grad_query; times q': of grad_key
  T distance = 0;
};

// z: what dropout multiplies the weight with. extra: b' - slope' |distance|.
template <class E, bool kSecond, class T>
TORCH_EXT_DEVICE Terms<T> terms_of(const Problem& p, const Score<T>& score, T z, T extra,
                                   const Products<T>& x, const RowNumbers<T>& row) {
  Terms<T> terms;
  const T slope = (1 - score.cap) * (1 + score.cap);
  terms.distance = score.distance;
  terms.p = exponential<E>((score.value - row.lse) - row.residual);
  terms.kept = z * terms.p;
  terms.dp = z * x.dp;
  terms.centred = terms.dp - row.delta;
  const T first = terms.p * terms.centred;
  if constexpr (kSecond) {
    const T raw_dot = static_cast<T>(p.scale) * x.s_dot;
    terms.s_dot = (slope * raw_dot + extra) - row.center;
    terms.apart = terms.s_dot - row.mu;
    terms.dp_dot = z * x.dp_dot;
    terms.ds = terms.p * (terms.dp_dot + terms.apart * terms.centred - row.epsilon);
    terms.ds0 = slope * terms.ds;
    terms.ds0_dot = slope * first;
    if (p.softcap > 0)
      terms.ds0 += -2 * score.cap / static_cast<T>(p.softcap) * slope * raw_dot * first;
  } else {
    terms.ds = first;
    terms.ds0 = slope * first;
  }
  return terms;
}

}  // namespace torch_ext::cuda
