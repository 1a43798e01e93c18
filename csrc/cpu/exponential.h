// exp for vectors of float32.
#pragma once

#include <cstdint>

#include "simd.h"

namespace puma {

// exp(x) for x <= 0, within 2e-7 of itself; 0 where that is below 1e-37, NaN for NaN. From Cephes' expf: x = n ln 2 + r and
// a polynomial for exp(r).
template <class V>
PUMA_INLINE V exponential(V x) {
  using I = typename Vector<int32_t, sizeof(V)>::type;
  constexpr float kLeast = -85.0F, kLog2e = 1.44269504F, kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;
  const V rounder = V{} + 12582912.0F;  // 1.5 * 2^23: what is added to it loses its fraction
  const V shifted = x * kLog2e + rounder, n = shifted - rounder;
  const V r = x - n * kLn2High - n * kLn2Low;
  V p = V{} + 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const I exponent = reinterpret_cast<I>(shifted) << 23;  // of rounder no bits are left
  const V value = reinterpret_cast<V>(reinterpret_cast<I>(p) + exponent);
  return x < kLeast ? V{} : (x == x ? value : x);
}

}  // namespace puma
