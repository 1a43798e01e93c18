// Rows of bfloat16 on AVX-512, with its own instructions for the type: what the units that multiply bfloat16 share.
#pragma once

#include "simd.h"
#include "vector.h"

#if PUMA_HAS_BF16
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 has many in its own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstring>

#include "step.h"

#define PUMA_BF16_INLINE inline __attribute__((always_inline)) PUMA_AVX512_BF16

namespace puma {

PUMA_BF16_INLINE __m512i low_half(const bf16* in) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
}
PUMA_BF16_INLINE __m512 load(const bf16* in) { return _mm512_castsi512_ps(_mm512_slli_epi32(low_half(in), 16)); }
PUMA_BF16_INLINE __m512 load(const float* in) { return _mm512_loadu_ps(in); }

// 32 values, to nearest even as the processor rounds: subnormals become 0, as they do in its products.
PUMA_BF16_INLINE __m512i narrowed(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}
PUMA_BF16_INLINE void store_pair(bf16* out, __m512 first, __m512 second) {
  _mm512_storeu_si512(out, narrowed(first, second));
}

// The same with subnormals kept and one NaN for all.
PUMA_BF16_INLINE void store_exactly(bf16* out, __m512 first, __m512 second) {
  constexpr int kSpecial = 0x80 | 0x20 | 0x01;  // signalling NaN, subnormal, quiet NaN
  if (__builtin_expect((_mm512_fpclass_ps_mask(first, kSpecial) | _mm512_fpclass_ps_mask(second, kSpecial)) != 0, 0)) {
    alignas(64) float values[32];
    _mm512_store_ps(values, first);
    _mm512_store_ps(values + 16, second);
    convert(out, values, 32);
  } else {
    store_pair(out, first, second);
  }
}
PUMA_BF16_INLINE void store_exactly(float* out, __m512 first, __m512 second) {
  _mm512_storeu_ps(out, first);
  _mm512_storeu_ps(out + 16, second);
}

// Two rows, 16 columns, interleaved.
PUMA_BF16_INLINE __m512i interleaved(const bf16* even, const bf16* odd) {
  return _mm512_or_si512(low_half(even), _mm512_slli_epi32(low_half(odd), 16));
}

// out (16, 16) = the transpose of in, whose elements are pairs; strides in halves.
PUMA_BF16_INLINE void transpose_pairs(bf16* out, int64_t out_stride, const bf16* in, int64_t stride) {
  const __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i row[16];
  PUMA_UNROLL for (int i = 0; i < 16; ++i) row[i] = _mm512_loadu_si512(in + i * stride);
  // Rows s apart exchange the quarters off the diagonal of each (2s, 2s).
  PUMA_UNROLL for (int s = 1; s < 16; s *= 2) {
    const __m512i bit = _mm512_set1_epi32(s), second = _mm512_set1_epi32(16);
    const __mmask16 upper = _mm512_test_epi32_mask(place, bit);
    const __m512i low = _mm512_mask_add_epi32(place, upper, _mm512_sub_epi32(place, bit), second);
    const __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(place, bit), upper, place, second);
    PUMA_UNROLL for (int i = 0; i < 16; ++i) {
      if ((i & s) != 0) continue;
      const __m512i a = row[i], b = row[i + s];
      row[i] = _mm512_permutex2var_epi32(a, low, b);
      row[i + s] = _mm512_permutex2var_epi32(a, high, b);
    }
  }
  PUMA_UNROLL for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * out_stride, row[i]);
}

}  // namespace puma

#endif
