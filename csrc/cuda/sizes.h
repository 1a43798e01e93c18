// Which sizes the fused kernels take.
#pragma once

#include "problem.h"

namespace puma {

inline constexpr int kMaxWidth = 128;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// element_size: of the tokens. Rows must be whole 16-byte units; rows and columns are counted in 32 bits, with room for
// what lies behind the last ones. Elements are counted in 64 bits.
inline bool fused_kernels_apply(const AdapterSizes& s, int64_t element_size) {
  constexpr int64_t kMost = INT64_C(1) << 30;
  return element_size <= 4 && s.width <= kMaxWidth && s.channels * element_size % 16 == 0 &&
         s.samples * s.tokens_per_sample <= kMost && s.channels <= kMost / 1024;
}

inline int padded_width(int64_t width) { return width <= 64 ? 64 : 128; }

}  // namespace puma
