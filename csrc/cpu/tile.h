// A tile of a matrix product whose sums stay in registers, written with GCC's vector extension.
#pragma once

#include <cstdint>

#include "simd.h"

namespace puma {

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

  PUMA_INLINE void add(const T* left, int64_t stride, const V (&right)[J]) {
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      const T l = left[i * stride];
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] += l * right[j];
    }
  }
};

}  // namespace puma
