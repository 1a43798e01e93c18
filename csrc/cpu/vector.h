// Element-wise loops around the GEMMs, compiled for several instruction sets, see simd.h. Memory never overlaps unless
// it is the same.
#pragma once

#include <cstdint>

namespace puma {

// Storage of the half types: bits only; arithmetic happens in float.
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

// The type that factors and sums are kept in.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

// h = max(h, 0); NaN stays NaN.
template <class T>
void relu(T* h, int64_t n);

// out = residual + factor * product, R is the residual's type.
template <class R, class T>
void add_scaled(R* out, const R* residual, const T* product, accumulate_t<T> factor, int64_t n);

// out = residual + branch + factor * product, rounded once; B is R or T.
template <class R, class B, class T>
void add_branch_scaled(
    R* out, const R* residual, const B* branch, const T* product, accumulate_t<T> factor, int64_t n);

// d = hidden > 0 ? factor * d : 0.
template <class T>
void mask_scaled(T* d, const T* hidden, accumulate_t<T> factor, int64_t n);

// out = factor * in.
template <class T>
void scale(T* out, const T* in, accumulate_t<T> factor, int64_t n);

// out = in, rounded to T.
template <class T>
void convert(T* out, const accumulate_t<T>* in, int64_t n);

// sum += in.
template <class T>
void accumulate(accumulate_t<T>* sum, const T* in, int64_t n);

}  // namespace puma
