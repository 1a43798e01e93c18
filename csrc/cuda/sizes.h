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

// Of the packed weights along C: whole steps, see PackedWeights.
inline int64_t padded_channels(int64_t channels, int64_t element_size) {
  const int64_t step = 128 / element_size;
  return divide_up(channels, step) * step;
}

// What a forward's kernels leave to the backward's, see PreparedParts; 0 where the fused kernels do not apply. The fake
// kernel in puma_plugin/ops says the same.
inline int64_t prepared_bytes(const AdapterSizes& s, int64_t element_size) {
  if (s.samples * s.tokens_per_sample == 0 || !fused_kernels_apply(s, element_size)) return 0;
  const int64_t packed = 2 * padded_channels(s.channels, element_size) * padded_width(s.width) * element_size;
  return packed + static_cast<int64_t>(sizeof(SampleList)) + 2 * divide_up(s.samples, 4) * 16;
}

}  // namespace puma
