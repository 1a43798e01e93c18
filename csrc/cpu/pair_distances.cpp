#include "pair_distances.h"

#include <cstring>

#include "simd.h"

namespace puma {
namespace {

using Sixteen = Vector<float, 64>::type;
using Eight = Vector<float, 32>::type;
using Four = Vector<float, 16>::type;
constexpr int64_t W = 16;

PUMA_INLINE Sixteen load(const float* from) { return *reinterpret_cast<const Sixteen*>(from); }

// The last few numbers, and zeros.
PUMA_INLINE Sixteen load(const float* from, int64_t count) {
  Sixteen values{};
  std::memcpy(&values, from, count * sizeof(float));
  return values;
}

// The sums of four: halves are added to each other until one number is left of each.
PUMA_INLINE Four sums(const Sixteen* values) {
  Four quarter[4];
  PUMA_UNROLL for (int j = 0; j < 4; ++j) {
    const Sixteen& v = values[j];
    const Eight half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                       __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    quarter[j] = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
  }
  const Four& a = quarter[0], &b = quarter[1], &c = quarter[2], &d = quarter[3];
  const Four ab = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const Four cd = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

PUMA_INLINE void distances_of_pairs(
    float* distances, const float* query, const float* const* items, int count, float own, const float* squared,
    int64_t width) {
  for (int first = 0; first < count; first += 4) {
    const float* item[4];
    PUMA_UNROLL for (int j = 0; j < 4; ++j) item[j] = items[first + j < count ? first + j : first];
    Sixteen product[4] = {};
    int64_t c = 0;
    for (; c + W <= width; c += W) {
      const Sixteen x = load(query + c);
      PUMA_UNROLL for (int j = 0; j < 4; ++j) product[j] += x * load(item[j] + c);
    }
    if (c < width) {
      const Sixteen x = load(query + c, width - c);
      PUMA_UNROLL for (int j = 0; j < 4; ++j) product[j] += x * load(item[j] + c, width - c);
    }
    const Four sum = sums(product);
    for (int j = 0; j < 4 && first + j < count; ++j) {
      const float distance = (own + squared[first + j]) - 2 * sum[j];
      distances[first + j] = distance <= 0 ? 0 : distance;  // without -0: keys order distances by their bits
    }
  }
}

using Kernel = void (*)(float*, const float*, const float* const*, int, float, const float*, int64_t);

#define PUMA_PAIRS(NAME, ...)                                                                                   \
  __VA_ARGS__ void pairs_##NAME(                                                                                \
      float* distances, const float* query, const float* const* items, int count, float own, const float* squared, \
      int64_t width) {                                                                                          \
    distances_of_pairs(distances, query, items, count, own, squared, width);                                    \
  }

PUMA_PAIRS(portable)
#if defined(__x86_64__)
PUMA_PAIRS(avx2, PUMA_AVX2)
PUMA_PAIRS(avx512, PUMA_AVX512)
#endif

Kernel kernel() {
#if defined(__x86_64__)
  return choose<Kernel>(&pairs_portable, &pairs_avx2, &pairs_avx512);
#else
  return &pairs_portable;
#endif
}

}  // namespace

void pair_distances(
    float* distances, const float* query, const float* const* items, int count, float own, const float* squared,
    int64_t width) {
  static const Kernel chosen = kernel();
  chosen(distances, query, items, count, own, squared, width);
}

}  // namespace puma
