#include "prompt_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "exponential.h"
#include "lanes.h"
#include "simd.h"

namespace puma {
namespace {

// In double, as several sums: one after the other each addition would wait for the last.
template <class T>
PUMA_INLINE double dot(const T* a, const T* b, int64_t elements) {
  constexpr int LANES = 16;
  double sums[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= elements; i += LANES) {
    for (int lane = 0; lane < LANES; ++lane) sums[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  for (; i < elements; ++i) total += static_cast<double>(a[i]) * b[i];
  return total;
}

template <int bytes>
PUMA_INLINE void softmax(float* out, const float* logits, int64_t elements) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float));
  const int64_t whole = elements / W * W, rest = elements - whole;
  V most = only(load_some<V>(logits + whole, rest), rest);
  for (int64_t i = 0; i < whole; i += W) {
    const V logit = *reinterpret_cast<const V*>(logits + i);
    most = most > logit ? most : logit;
  }
  float largest = most[0];
  for (int lane = 1; lane < W; ++lane) largest = std::max(largest, static_cast<float>(most[lane]));
  V totals{};
  for (int64_t i = 0; i < whole; i += W) {
    const V weight = exponential(*reinterpret_cast<const V*>(logits + i) - largest);
    *reinterpret_cast<V*>(out + i) = weight;
    totals += weight;
  }
  const V weight = exponential(only(load_some<V>(logits + whole, rest), rest) - largest);
  store_some(out + whole, weight, rest);
  totals += weight;
  float total = 0;
  for (int lane = 0; lane < W; ++lane) total += totals[lane];
  const float inverse = 1 / total;
  for (int64_t i = 0; i < elements; ++i) out[i] *= inverse;
}

template <int bytes>
PUMA_INLINE void softmax(double* out, const double* logits, int64_t elements) {
  const double largest = *std::max_element(logits, logits + elements);
  double total = 0;
  for (int64_t i = 0; i < elements; ++i) {
    out[i] = std::exp(logits[i] - largest);
    total += out[i];
  }
  for (int64_t i = 0; i < elements; ++i) out[i] /= total;
}

template <class T, int bytes>
PUMA_INLINE T prepare(PromptRow<T> row, const T* key, const T* attention, int64_t width) {
  softmax<bytes>(row.focus, attention, width);
  const T norm = std::max(static_cast<T>(std::sqrt(dot(key, key, width))), std::numeric_limits<T>::min());
  const T inverse = 1 / norm;
  T *const __restrict unit = row.unit, *const __restrict product = row.product, *const __restrict square = row.square;
  for (int64_t c = 0; c < width; ++c) {
    const T focus = row.focus[c];
    unit[c] = key[c] * inverse;
    product[c] = focus * unit[c];
    square[c] = focus * focus;
  }
  return norm;
}

template <class T>
PUMA_INLINE void gradients(
    T* __restrict grad_key, T* __restrict grad_attention, const T* grad_product, const T* twice_grad_square,
    PromptRow<T> row, T norm, int64_t width) {
  const T *const focus = row.focus, *const unit = row.unit;
  for (int64_t c = 0; c < width; ++c) {
    grad_attention[c] = grad_product[c] * unit[c] + focus[c] * twice_grad_square[c];
    grad_key[c] = grad_product[c] * focus[c];
  }
  const T along_focus = static_cast<T>(dot(focus, grad_attention, width));
  // A norm that was clamped is a constant.
  const bool clamped = norm <= std::numeric_limits<T>::min();
  const T along_unit = clamped ? T{0} : static_cast<T>(dot(unit, grad_key, width));
  const T inverse = 1 / norm;
  for (int64_t c = 0; c < width; ++c) {
    grad_attention[c] = focus[c] * (grad_attention[c] - along_focus);
    grad_key[c] = (grad_key[c] - unit[c] * along_unit) * inverse;
  }
}

template <class T>
struct Kernels {
  T (*prepare)(PromptRow<T> row, const T* key, const T* attention, int64_t width);
  void (*gradients)(
      T* grad_key, T* grad_attention, const T* grad_product, const T* twice_grad_square, PromptRow<T> row, T norm,
      int64_t width);
};

#define PUMA_KERNELS(NAME, BYTES, ...)                                                                             \
  template <class T>                                                                                               \
  __VA_ARGS__ T prepare_##NAME(PromptRow<T> row, const T* key, const T* attention, int64_t width) {                \
    return prepare<T, BYTES>(row, key, attention, width);                                                          \
  }                                                                                                                \
  template <class T>                                                                                               \
  __VA_ARGS__ void gradients_##NAME(                                                                               \
      T* grad_key, T* grad_attention, const T* grad_product, const T* twice_grad_square, PromptRow<T> row, T norm, \
      int64_t width) {                                                                                             \
    gradients<T>(grad_key, grad_attention, grad_product, twice_grad_square, row, norm, width);                     \
  }

PUMA_KERNELS(portable, 16)
#if defined(__x86_64__)
PUMA_KERNELS(avx2, 32, PUMA_AVX2)
PUMA_KERNELS(avx512, 64, PUMA_AVX512)
#endif

template <class T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
  static const Kernels<T> chosen = choose<Kernels<T>>(
      {&prepare_portable<T>, &gradients_portable<T>}, {&prepare_avx2<T>, &gradients_avx2<T>},
      {&prepare_avx512<T>, &gradients_avx512<T>});
#else
  static const Kernels<T> chosen{&prepare_portable<T>, &gradients_portable<T>};
#endif
  return chosen;
}

}  // namespace

template <class T>
T prepare_prompt(PromptRow<T> row, const T* key, const T* attention, int64_t width) {
  return kernels<T>().prepare(row, key, attention, width);
}

template <class T>
void prompt_gradients(
    T* grad_key, T* grad_attention, const T* grad_product, const T* twice_grad_square, PromptRow<T> row, T norm,
    int64_t width) {
  kernels<T>().gradients(grad_key, grad_attention, grad_product, twice_grad_square, row, norm, width);
}

#define PUMA_PROMPT_POOL(T)                                                              \
  template T prepare_prompt<T>(PromptRow<T>, const T*, const T*, int64_t);               \
  template void prompt_gradients<T>(T*, T*, const T*, const T*, PromptRow<T>, T, int64_t);

PUMA_PROMPT_POOL(float)
PUMA_PROMPT_POOL(double)

}  // namespace puma
