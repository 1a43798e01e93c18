// Which sizes the fused kernels take.
#pragma once

#include "problem.h"

namespace puma {

inline constexpr int kMaxWidth = 128;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// element_size: of the tokens. Rows must be whole 16-byte units.
inline bool fused_kernels_take(int64_t channels, int64_t width, int64_t element_size) {
  return element_size <= 4 && width >= 1 && width <= kMaxWidth && channels * element_size % 16 == 0 && channels >= 1 &&
         channels <= INT64_C(1) << 20;
}
// Rows and columns are counted in 32 bits, with room for what lies behind the last ones; elements in 64 bits.
inline bool fused_kernels_apply(const AdapterSizes& s, int64_t element_size) {
  return fused_kernels_take(s.channels, s.width, element_size) && s.samples * s.tokens_per_sample <= INT64_C(1) << 30;
}

inline int padded_width(int64_t width) { return width <= 64 ? 64 : 128; }

// Of the packed weights along C: whole steps, see PackedWeights.
inline int64_t padded_channels(int64_t channels, int64_t element_size) {
  const int64_t step = 128 / element_size;
  return divide_up(channels, step) * step;
}

// What a forward's kernels leave to the backward's, see PreparedParts. Zeros where the kernels do not run. The fake
// kernel in puma_plugin/ops says the same; it must not ask how many rows there are, which a compiled program may not
// know.
inline int64_t list_bytes(int64_t samples) {
  return static_cast<int64_t>(sizeof(SampleList)) + 2 * divide_up(samples, 4) * 16;
}
inline int64_t prepared_bytes(const AdapterSizes& s, int64_t element_size) {
  if (!fused_kernels_take(s.channels, s.width, element_size)) return 0;
  return 2 * padded_channels(s.channels, element_size) * padded_width(s.width) * element_size + list_bytes(s.samples);
}

}  // namespace puma
