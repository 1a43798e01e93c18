// A tile of a matrix product whose sums stay in registers, written with GCC's vector extension, and how vectors of float32
// are read from and written to memory of other types.
#pragma once

#include <cstdint>

#include "half.h"
#include "simd.h"

namespace puma {

// Of tiles for products along rows: as many rows, and vectors of columns, as the registers hold.
template <int bytes>
constexpr int kTileRows = bytes == 64 ? 14 : 6;
constexpr int kTileVectors = 2;

// Rows and columns of those of this machine; 0 where it has no vectors.
inline int64_t tile_rows() { return choose<int64_t>(0, kTileRows<32>, kTileRows<64>); }
inline int64_t tile_columns() { return choose<int64_t>(0, 32, 64) / sizeof(float) * kTileVectors; }

// Products that are added up one after the other, where there may be many more: a longer chain would round more.
constexpr int64_t kLongestSum = 512;

inline int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// I rows and J vectors of columns.
template <class T, int bytes, int I, int J>
struct Tile {
  using V = typename Vector<T, bytes>::type;
  static constexpr int W = bytes / static_cast<int>(sizeof(T));
  static constexpr int kColumns = J * W;
  V sum[I][J];

  PUMA_INLINE void clear() {
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = V{};
    }
  }

  // += left (I, 1) @ right (1, J vectors); left's elements are `stride` apart.
  PUMA_INLINE void add(const T* left, int64_t stride, const T* right) {
    V r[J];
    PUMA_UNROLL for (int j = 0; j < J; ++j) r[j] = *reinterpret_cast<const V*>(right + j * W);
    add(left, stride, r);
  }

  // Written out here: sums that are handed to a function, even an inlined one, do not stay in registers.
  PUMA_INLINE void add(const T* left, int64_t stride, const V (&right)[J]) {
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      const T l = left[i * stride];
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] += l * right[j];
    }
  }
};

// W values of float32, or of a half type widened to them. As a template's argument a vector may lose what it says of its
// alignment (in clang), so memory is read and written by the vector's own name.
template <class V>
PUMA_INLINE V load(const float* in) {
  return *reinterpret_cast<const typename Vector<float, sizeof(V)>::type*>(in);
}
template <class V, class Half>
PUMA_INLINE V load(const Half* in) {
  using Bits = typename Vector<uint16_t, sizeof(V) / 2>::type;
  using U = typename Vector<uint32_t, sizeof(V)>::type;
  return widened<V>(Half{}, __builtin_convertvector(*reinterpret_cast<const Bits*>(in), U));
}

template <class V>
PUMA_INLINE void store(float* out, V value) {
  *reinterpret_cast<typename Vector<float, sizeof(V)>::type*>(out) = value;
}
template <class V, class Half>
PUMA_INLINE void store(Half* out, V value) {
  using Bits = typename Vector<uint16_t, sizeof(V) / 2>::type;
  using U = typename Vector<uint32_t, sizeof(V)>::type;
  *reinterpret_cast<Bits*>(out) = __builtin_convertvector(narrowed<U>(Half{}, value), Bits);
}

// value, rounded to T.
template <class T, class V>
PUMA_INLINE V rounded(V value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    using U = typename Vector<uint32_t, sizeof(V)>::type;
    return widened<V>(T{}, narrowed<U>(T{}, value));
  }
}

}  // namespace puma
