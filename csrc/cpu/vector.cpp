#include "vector.h"

#include "half.h"
#include "simd.h"

namespace puma {
namespace {

PUMA_INLINE float load(float value) { return value; }
PUMA_INLINE double load(double value) { return value; }
template <class Half>
PUMA_INLINE float load(Half value) {
  return widened<float>(Half{}, static_cast<uint32_t>(value.bits));
}

PUMA_INLINE void store(float& out, float value) { out = value; }
PUMA_INLINE void store(double& out, double value) { out = value; }
template <class Half>
PUMA_INLINE void store(Half& out, float value) {
  out.bits = static_cast<uint16_t>(narrowed<uint32_t>(Half{}, value));
}

// A negative half becomes 0, in integers: its bits lie between those of -0 and of minus infinity.
PUMA_INLINE float positive_part(float value) { return value < 0 ? 0 : value; }
PUMA_INLINE double positive_part(double value) { return value < 0 ? 0 : value; }
PUMA_INLINE bf16 positive_part(bf16 value) {
  return {static_cast<uint16_t>(value.bits > 0x8000u && value.bits <= 0xff80u ? 0 : value.bits)};
}
PUMA_INLINE fp16 positive_part(fp16 value) {
  return {static_cast<uint16_t>(value.bits > 0x8000u && value.bits <= 0xfc00u ? 0 : value.bits)};
}

// value where condition > 0, else 0.
PUMA_INLINE float where_positive(float condition, float value) { return condition > 0 ? value : 0; }
PUMA_INLINE double where_positive(double condition, double value) { return condition > 0 ? value : 0; }
PUMA_INLINE bf16 where_positive(bf16 condition, bf16 value) {
  return {static_cast<uint16_t>(static_cast<uint16_t>(condition.bits - 1u) < 0x7f80u ? value.bits : 0)};
}
PUMA_INLINE fp16 where_positive(fp16 condition, fp16 value) {
  return {static_cast<uint16_t>(static_cast<uint16_t>(condition.bits - 1u) < 0x7c00u ? value.bits : 0)};
}

#define PUMA_LOOP(name, attributes)                          \
  template <class Body>                                      \
  attributes void name(int64_t n, const Body& body) {        \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) body(i); \
  }

PUMA_LOOP(loop_portable, )
#if defined(__x86_64__)
PUMA_LOOP(loop_avx2, PUMA_AVX2)
PUMA_LOOP(loop_avx512, PUMA_AVX512)
#endif

// body(i) for every i < n, compiled for each instruction set. Iterations do not depend on one another.
template <class Body>
void loop(int64_t n, const Body& body) {
#if defined(__x86_64__)
  choose(loop_portable<Body>, loop_avx2<Body>, loop_avx512<Body>)(n, body);
#else
  loop_portable(n, body);
#endif
}

}  // namespace

// Captures by value: pointers that a reference leads to would be read anew after each store.
#define PUMA_BODY(...) [=](int64_t i) __attribute__((always_inline)) { __VA_ARGS__; }

template <class T>
void relu(T* h, int64_t n) {
  loop(n, PUMA_BODY(h[i] = positive_part(h[i])));
}

template <class T>
void mask_scaled(T* d, const T* hidden, accumulate_t<T> factor, int64_t n) {
  loop(n, PUMA_BODY(T value; store(value, factor * load(d[i])); d[i] = where_positive(hidden[i], value)));
}

template <class T>
void scale(T* out, const T* in, accumulate_t<T> factor, int64_t n) {
  loop(n, PUMA_BODY(store(out[i], factor * load(in[i]))));
}

template <class T>
void convert(T* out, const accumulate_t<T>* in, int64_t n) {
  loop(n, PUMA_BODY(store(out[i], in[i])));
}

template <class T>
void accumulate(accumulate_t<T>* sum, const T* in, int64_t n) {
  loop(n, PUMA_BODY(sum[i] += load(in[i])));
}

template <class R, class T>
void add_scaled(R* out, const R* residual, const T* product, accumulate_t<T> factor, int64_t n) {
  loop(n, PUMA_BODY(store(out[i], load(residual[i]) + factor * load(product[i]))));
}

template <class R, class B, class T>
void add_branch_scaled(
    R* out, const R* residual, const B* branch, const T* product, accumulate_t<T> factor, int64_t n) {
  loop(n, PUMA_BODY(store(out[i], load(residual[i]) + load(branch[i]) + factor * load(product[i]))));
}

#define PUMA_LOOPS(T)                                                        \
  template void relu<T>(T*, int64_t);                                        \
  template void mask_scaled<T>(T*, const T*, accumulate_t<T>, int64_t);      \
  template void scale<T>(T*, const T*, accumulate_t<T>, int64_t);            \
  template void convert<T>(T*, const accumulate_t<T>*, int64_t);             \
  template void add_scaled<T, T>(T*, const T*, const T*, accumulate_t<T>, int64_t); \
  template void add_branch_scaled<T, T, T>(T*, const T*, const T*, const T*, accumulate_t<T>, int64_t);

// Half types: their sums, and next to a float residual.
#define PUMA_MIXED(T)                                                                           \
  template void accumulate<T>(float*, const T*, int64_t);                                       \
  template void add_scaled<float, T>(float*, const float*, const T*, float, int64_t);           \
  template void add_branch_scaled<float, float, T>(float*, const float*, const float*, const T*, float, int64_t); \
  template void add_branch_scaled<float, T, T>(float*, const float*, const T*, const T*, float, int64_t);

PUMA_LOOPS(float)
PUMA_LOOPS(double)
PUMA_LOOPS(bf16)
PUMA_LOOPS(fp16)
PUMA_MIXED(bf16)
PUMA_MIXED(fp16)

}  // namespace puma
