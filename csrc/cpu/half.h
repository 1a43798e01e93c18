// Half types in integers, for single values and for GCC's vectors alike: U is uint32_t and F float, or vectors of as many.
// A half is the low 16 bits of a U.
#pragma once

#include <cstdint>

#include "simd.h"
#include "vector.h"

namespace puma {

template <class To, class From>
PUMA_INLINE To same_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}

template <class F, class U>
PUMA_INLINE F widened(bf16 /*type*/, U half) {
  return same_bits<F>(half << 16);
}

// Shifting a half's exponent and mantissa into a float's place leaves a value that is 2^-112 of the right one, also for
// subnormals; only infinity and NaN need their exponent filled up.
template <class F, class U>
PUMA_INLINE F widened(fp16 /*type*/, U half) {
  const U magnitude = half & 0x7fffu;
  const U finite = same_bits<U>(same_bits<F>(magnitude << 13) * 0x1p112f);
  const U special = (magnitude << 13) | 0x7f800000u;
  const U unsigned_bits = magnitude >= 0x7c00u ? special : finite;
  return same_bits<F>(unsigned_bits | ((half & 0x8000u) << 16));
}

// Round to nearest even; NaN stays NaN.
template <class U, class F>
PUMA_INLINE U narrowed(bf16 /*type*/, F value) {
  const U bits = same_bits<U>(value);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U nan = (bits & 0u) + 0x7fc0u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
}

// Round to nearest even. Adding 0.5 moves a subnormal half's last place to the float's last place.
template <class U, class F>
PUMA_INLINE U narrowed(fp16 /*type*/, F value) {
  const U bits = same_bits<U>(value), magnitude = bits & 0x7fffffffu, zero = bits & 0u;
  const U normal = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  const U subnormal = same_bits<U>(same_bits<F>(magnitude) + 0.5f) - 0x3f000000u;
  const U nan = zero + 0x7e00u, infinite = zero + 0x7c00u;
  const U special = magnitude > 0x7f800000u ? nan : infinite;
  const U finite = magnitude < 0x38800000u ? subnormal : normal;
  const U rounded = magnitude >= 0x477ff000u ? special : finite;
  return rounded | ((bits >> 16) & 0x8000u);
}

}  // namespace puma
