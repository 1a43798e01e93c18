// GELU and its slope for vectors of float32.
#pragma once

#include <cstdint>

#include "exponential.h"
#include "half.h"
#include "simd.h"

namespace puma {

// 1 / x for x >= 1: a first guess from the exponent, and three steps of Newton's method. A division would take longer than
// all that is around it.
template <class V>
PUMA_INLINE V reciprocal(V x) {
  using I = typename Vector<int32_t, sizeof(V)>::type;
  V y = same_bits<V>(0x7ef311c7 - same_bits<I>(x));
  y = y * (2.0F - x * y);
  y = y * (2.0F - x * y);
  return y * (2.0F - x * y);
}

// value = x Phi(x) and slope = Phi(x) + x phi(x), Phi by formula 7.1.26 of Abramowitz and Stegun, within 1.5e-7.
template <class V>
PUMA_INLINE void gelu(V x, V& value, V& slope) {
  using I = typename Vector<int32_t, sizeof(V)>::type;
  constexpr float kSqrtHalf = 0.70710678F, kDensity = 0.39894228F;  // 1 / sqrt(2), 1 / sqrt(2 pi)
  const V z = same_bits<V>(same_bits<I>(x) & 0x7fffffff) * kSqrtHalf;
  const V t = reciprocal<V>(1.0F + 0.3275911F * z), bell = exponential<V>(-z * z);
  V p = V{} + 1.061405429F;
  p = p * t - 1.453152027F;
  p = p * t + 1.421413741F;
  p = p * t - 0.284496736F;
  p = p * t + 0.254829592F;
  const V tail = 0.5F * p * t * bell, cumulated = x < 0 ? tail : 1.0F - tail;
  value = x * cumulated;
  slope = cumulated + x * (kDensity * bell);
}

}  // namespace puma
