#include "vector.h"

#include <cstring>

#include "simd.h"

// One clone per instruction set, picked by the dynamic loader: a binary built anywhere runs everywhere.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define PUMA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PUMA_CLONES
#endif

namespace puma {
namespace {

PUMA_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

PUMA_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

PUMA_INLINE float load(float value) { return value; }
PUMA_INLINE double load(double value) { return value; }
PUMA_INLINE float load(bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

// Shifting a half's exponent and mantissa into a float's place leaves a value that is 2^-112 of the right one, also for
// subnormals; only infinity and NaN need their exponent filled up.
PUMA_INLINE float load(fp16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  return float_of((magnitude >= 0x7c00u ? special : finite) | (static_cast<uint32_t>(value.bits & 0x8000u) << 16));
}

PUMA_INLINE void store(float& out, float value) { out = value; }
PUMA_INLINE void store(double& out, double value) { out = value; }

// Round to nearest even; NaN stays NaN.
PUMA_INLINE void store(bf16& out, float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Round to nearest even. Adding 0.5 moves a subnormal half's last place to the float's last place.
PUMA_INLINE void store(fp16& out, float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  out.bits = static_cast<uint16_t>((magnitude >= 0x477ff000u ? special : finite) | ((bits >> 16) & 0x8000u));
}

}  // namespace

#define PUMA_LOOPS(T)                                                                                     \
  template <>                                                                                             \
  PUMA_CLONES void relu<T>(T * h, int64_t n) {                                                            \
    for (int64_t i = 0; i < n; ++i) {                                                                     \
      const auto value = load(h[i]);                                                                      \
      store(h[i], value < 0 ? 0 : value);                                                                 \
    }                                                                                                     \
  }                                                                                                       \
  template <>                                                                                             \
  PUMA_CLONES void mask_scaled<T>(T * d, const T* hidden, accumulate_t<T> factor, int64_t n) {            \
    for (int64_t i = 0; i < n; ++i) {                                                                     \
      const accumulate_t<T> value = factor * load(d[i]);                                                  \
      store(d[i], load(hidden[i]) > 0 ? value : 0);                                                       \
    }                                                                                                     \
  }                                                                                                       \
  template <>                                                                                             \
  PUMA_CLONES void scale<T>(T * __restrict out, const T* __restrict in, accumulate_t<T> factor, int64_t n) { \
    for (int64_t i = 0; i < n; ++i) store(out[i], factor * load(in[i]));                                  \
  }                                                                                                       \
  template <>                                                                                             \
  PUMA_CLONES void convert<T>(T * __restrict out, const accumulate_t<T>* __restrict in, int64_t n) {      \
    for (int64_t i = 0; i < n; ++i) store(out[i], in[i]);                                                 \
  }                                                                                                       \
  template <>                                                                                             \
  PUMA_CLONES void accumulate<T>(accumulate_t<T> * __restrict sum, const T* __restrict in, int64_t n) {   \
    for (int64_t i = 0; i < n; ++i) sum[i] += load(in[i]);                                                \
  }

#define PUMA_ADD(R, T)                                                                                    \
  template <>                                                                                             \
  PUMA_CLONES void add_scaled<R, T>(                                                                      \
      R * __restrict out, const R* __restrict residual, const T* __restrict product, accumulate_t<T> factor, \
      int64_t n) {                                                                                        \
    for (int64_t i = 0; i < n; ++i) store(out[i], load(residual[i]) + factor * load(product[i]));         \
  }

#define PUMA_ADD_BRANCH(R, B, T)                                                                          \
  template <>                                                                                             \
  PUMA_CLONES void add_branch_scaled<R, B, T>(                                                            \
      R * __restrict out, const R* __restrict residual, const B* __restrict branch,                       \
      const T* __restrict product, accumulate_t<T> factor, int64_t n) {                                   \
    for (int64_t i = 0; i < n; ++i) {                                                                     \
      store(out[i], load(residual[i]) + load(branch[i]) + factor * load(product[i]));                     \
    }                                                                                                     \
  }

PUMA_LOOPS(float)
PUMA_LOOPS(double)
PUMA_LOOPS(bf16)
PUMA_LOOPS(fp16)
PUMA_ADD(float, float)
PUMA_ADD(double, double)
PUMA_ADD(bf16, bf16)
PUMA_ADD(fp16, fp16)
PUMA_ADD(float, bf16)
PUMA_ADD(float, fp16)
PUMA_ADD_BRANCH(float, float, float)
PUMA_ADD_BRANCH(double, double, double)
PUMA_ADD_BRANCH(bf16, bf16, bf16)
PUMA_ADD_BRANCH(fp16, fp16, fp16)
PUMA_ADD_BRANCH(float, float, bf16)
PUMA_ADD_BRANCH(float, bf16, bf16)
PUMA_ADD_BRANCH(float, float, fp16)
PUMA_ADD_BRANCH(float, fp16, fp16)

}  // namespace puma
