// exp for GCC's vectors of float32.
#pragma once

#include <cstdint>

#include "half.h"
#include "simd.h"

namespace puma {

// exp(x) for x <= 88 with a relative error below 2e-7, exactly 1 for 0, and exactly 0 below -87.3, where results would
// soon be subnormal. NaN stays NaN.
template <class V>
PUMA_INLINE V exponential(V x) {
  using U = typename Vector<uint32_t, sizeof(V)>::type;
  // x = n ln 2 + r with |r| <= ln(2) / 2. Added to so large a number, a value is rounded to an integer, which stands in
  // the last bits: n, and the 127 of a float's exponent.
  constexpr float kRound = 0x1.8p23F + 127;
  const V rounded = x * 1.44269504F + kRound;
  const V n = rounded - kRound;
  // ln 2 in two parts; the first has so few bits that n times it is exact also without fused multiplication.
  const V r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  // Of the polynomials that begin with 1 + r the one with the least relative error, 1.05e-7.
  V p = r * 8.312515471e-3F + 4.1890200691e-2F;
  p = p * r + 1.6667114835e-1F;
  p = p * r + 4.9999231198e-1F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  // A product, not a sum of bits: NaN stays NaN.
  const V result = p * same_bits<V>(same_bits<U>(rounded) << 23);
  return x < -87.3F ? V{} : result;
}

}  // namespace puma
