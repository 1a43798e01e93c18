// The parts of the adapter around plain matrix products, for shapes and types the fused kernels do not take (float64,
// r > 128, C not a multiple of a 16-byte unit). Kept rows are compacted to the front; the host never learns how many.
#pragma once

#include "prepare.cuh"
#include "problem.h"

namespace puma {

inline constexpr int kRowsThreads = 256;

// Where element `index` of the compacted (samples * tokens, channels) matrix lies in the full one.
template <typename Real>
struct CompactElement {
  bool kept;
  int64_t full;
  Real factor;

  PUMA_DEVICE CompactElement(const RowsArguments& p, int64_t index) {
    const int64_t per_sample = p.tokens_per_sample * p.channels;
    const int64_t rank = index / per_sample;
    const int64_t sample = p.order[rank];
    kept = rank < p.list->kept;
    full = sample * per_sample + (index - rank * per_sample);
    const Real scale = static_cast<Real>(p.scale);
    factor = p.gate == nullptr ? scale : static_cast<const Real*>(p.gate)[sample] * scale;
  }
};

template <typename Body>
PUMA_DEVICE void for_each_element(int64_t count, const Body& body) {
  for (int64_t i = dev::block() * kRowsThreads + dev::thread(); i < count; i += dev::blocks() * kRowsThreads) body(i);
}

// compact = kept rows of source, times the factor if with_factor; zeros behind them.
template <typename S, typename T>
PUMA_DEVICE void gather_rows(const RowsArguments& p, const S* source, T* compact, bool with_factor) {
  using Real = arithmetic_t<T>;
  for_each_element(p.samples * p.tokens_per_sample * p.channels, [&](int64_t i) {
    const CompactElement<Real> e(p, i);
    Real v = 0;
    if (e.kept) v = static_cast<Real>(dev::to_arithmetic(source[e.full])) * (with_factor ? e.factor : Real(1));
    dev::from_arithmetic(v, compact[i]);
  });
}

// out = residual + branch, in kept samples + factor * product. branch: of type R, or T if narrow; or null.
template <typename T, typename R>
PUMA_DEVICE void scatter_add_rows(const RowsArguments& p, const R* residual, const void* branch, bool narrow,
                                  const T* product, R* out) {
  using Real = arithmetic_t<T>;
  for_each_element(p.samples * p.tokens_per_sample * p.channels, [&](int64_t i) {
    const CompactElement<Real> e(p, i);
    Real v = static_cast<Real>(dev::to_arithmetic(residual[e.full]));
    if (branch != nullptr) {
      v += narrow ? static_cast<Real>(dev::to_arithmetic(static_cast<const T*>(branch)[e.full]))
                  : static_cast<Real>(dev::to_arithmetic(static_cast<const R*>(branch)[e.full]));
    }
    if (e.kept) v += e.factor * dev::to_arithmetic(product[i]);
    dev::from_arithmetic(v, out[e.full]);
  });
}

// out = compact in kept samples, 0 in dropped ones.
template <typename T>
PUMA_DEVICE void scatter_rows(const RowsArguments& p, const T* compact, T* out) {
  using Real = arithmetic_t<T>;
  for_each_element(p.samples * p.tokens_per_sample * p.channels, [&](int64_t i) {
    const CompactElement<Real> e(p, i);
    out[e.full] = compact[i];
    if (!e.kept) dev::from_arithmetic(Real(0), out[e.full]);
  });
}

// In place: relu (NaN stays).
template <typename T>
PUMA_DEVICE void rectify(int64_t count, T* values) {
  using Real = arithmetic_t<T>;
  for_each_element(count, [&](int64_t i) {
    if (dev::to_arithmetic(values[i]) < Real(0)) dev::from_arithmetic(Real(0), values[i]);
  });
}

// In place: delta where the activation is positive, else 0. clean: the activation, with zeros behind the kept rows.
template <typename T>
PUMA_DEVICE void mask_by_activation(const RowsArguments& p, int64_t width, const T* hidden, T* delta, T* clean) {
  using Real = arithmetic_t<T>;
  const int64_t kept_elements = p.list->kept * p.tokens_per_sample * width;
  for_each_element(p.samples * p.tokens_per_sample * width, [&](int64_t i) {
    const bool kept = i < kept_elements;
    const Real value = kept ? dev::to_arithmetic(hidden[i]) : Real(0);
    dev::from_arithmetic(value, clean[i]);
    if (!(value > Real(0))) dev::from_arithmetic(Real(0), delta[i]);
  });
}

}  // namespace puma
