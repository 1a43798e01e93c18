// Tiles of ROW_TILE rows by a few vectors whose sums stay in registers, written with GCC's vector extension and compiled
// once per instruction set.
#include "prompt_products.h"

#include <algorithm>

#include "simd.h"

namespace puma {
namespace {

// A matrix whose element (i, k) lies at data[i * row + k * column].
template <class T>
struct Strided {
  const T* data;
  int64_t row, column;
};

// out (I, J vectors) = left (I, depth) @ right (depth, J vectors); `stride` is the row length of out and of right.
template <class T, int bytes, int I, int J>
PUMA_INLINE void product_tile(T* out, Strided<T> left, const T* right, int64_t depth, int64_t stride) {
  using V = typename Vector<T, bytes>::type;
  constexpr int W = bytes / sizeof(T);
  V sum[I][J];
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    V r[J];
    PUMA_UNROLL for (int j = 0; j < J; ++j) r[j] = *reinterpret_cast<const V*>(right + k * stride + j * W);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      const T l = left.data[i * left.row + k * left.column];
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] += l * r[j];
    }
  }
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) *reinterpret_cast<V*>(out + i * stride + j * W) = sum[i][j];
  }
}

// I rows of a product, columns [begin, end): J vectors at a time, then one, then single columns.
template <class T, int bytes, int I, int J>
PUMA_INLINE void product_rows(
    T* out, Strided<T> left, const T* right, int64_t depth, int64_t begin, int64_t end, int64_t stride) {
  constexpr int W = bytes / sizeof(T);
  int64_t c = begin;
  for (; c + J * W <= end; c += J * W) product_tile<T, bytes, I, J>(out + c, left, right + c, depth, stride);
  for (; c + W <= end; c += W) product_tile<T, bytes, I, 1>(out + c, left, right + c, depth, stride);
  for (; c < end; ++c) product_tile<T, sizeof(T), I, 1>(out + c, left, right + c, depth, stride);
}

// All rows of a product, columns [begin, end), in blocks whose part of right stays in the cache.
template <class T, int bytes, int J>
PUMA_INLINE void product_columns(
    T* out, Strided<T> left, const T* right, int64_t rows, int64_t depth, int64_t begin, int64_t end, int64_t stride) {
  for (; begin < end; begin += COLUMN_BLOCK) {
    const int64_t stop = std::min(begin + COLUMN_BLOCK, end);
    int64_t i = 0;
    for (; i + ROW_TILE <= rows; i += ROW_TILE) {
      const Strided<T> here{left.data + i * left.row, left.row, left.column};
      product_rows<T, bytes, ROW_TILE, J>(out + i * stride, here, right, depth, begin, stop, stride);
    }
    for (; i < rows; ++i) {
      const Strided<T> here{left.data + i * left.row, left.row, left.column};
      product_rows<T, bytes, 1, J>(out + i * stride, here, right, depth, begin, stop, stride);
    }
  }
}

template <class T, int bytes>
PUMA_INLINE T lane_sum(const T* lanes) {
  if constexpr (bytes <= 16) {
    T total = lanes[0];
    PUMA_UNROLL for (size_t x = 1; x < bytes / sizeof(T); ++x) total += lanes[x];
    return total;
  } else {
    using Half = typename Vector<T, bytes / 2>::type;
    const Half sum = *reinterpret_cast<const Half*>(lanes) +
        *reinterpret_cast<const Half*>(lanes + bytes / 2 / sizeof(T));
    return lane_sum<T, bytes / 2>(reinterpret_cast<const T*>(&sum));
  }
}

// out[i * stride + j] = dot product of row i of left and row j of right, i < I, j < J.
template <class T, int bytes, int I, int J>
PUMA_INLINE void dot_tile(T* out, int64_t stride, const T* left, const T* right, int64_t columns) {
  using V = typename Vector<T, bytes>::type;
  constexpr int W = bytes / sizeof(T);
  V sum[I][J];
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = V{};
  }
  int64_t c = 0;
  for (; c + W <= columns; c += W) {
    V r[J];
    PUMA_UNROLL for (int j = 0; j < J; ++j) r[j] = *reinterpret_cast<const V*>(right + j * columns + c);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      const V l = *reinterpret_cast<const V*>(left + i * columns + c);
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] += l * r[j];
    }
  }
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      T total = lane_sum<T, bytes>(reinterpret_cast<const T*>(&sum[i][j]));
      for (int64_t x = c; x < columns; ++x) total += left[i * columns + x] * right[j * columns + x];
      out[i * stride + j] = total;
    }
  }
}

template <class T, int bytes, int I, int J>
PUMA_INLINE void dot_rows(T* out, const T* left, const T* right, int64_t pool, int64_t columns) {
  int64_t j = 0;
  for (; j + J <= pool; j += J) dot_tile<T, bytes, I, J>(out + j, pool, left, right + j * columns, columns);
  for (; j < pool; ++j) dot_tile<T, bytes, I, 1>(out + j, pool, left, right + j * columns, columns);
}

template <class T, int bytes, int J>
PUMA_INLINE void all_dots(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns) {
  int64_t i = 0;
  for (; i + ROW_TILE <= rows; i += ROW_TILE) {
    dot_rows<T, bytes, ROW_TILE, J>(out + i * pool, left + i * columns, right, pool, columns);
  }
  for (; i < rows; ++i) dot_rows<T, bytes, 1, J>(out + i * pool, left + i * columns, right, pool, columns);
}

// The loops above for one instruction set.
template <class T>
struct Kernels {
  void (*product)(
      T* out, Strided<T> left, const T* right, int64_t rows, int64_t depth, int64_t begin, int64_t end, int64_t stride);
  void (*dots)(T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns);
};

// VECTORS: as many as let ROW_TILE * VECTORS sums and what they are made of fit the registers.
#define PUMA_KERNELS(NAME, BYTES, VECTORS, ...)                                                                      \
  template <class T>                                                                                                 \
  __VA_ARGS__ void product_##NAME(                                                                                   \
      T* out, Strided<T> left, const T* right, int64_t rows, int64_t depth, int64_t begin, int64_t end,              \
      int64_t stride) {                                                                                              \
    product_columns<T, BYTES, VECTORS>(out, left, right, rows, depth, begin, end, stride);                           \
  }                                                                                                                  \
  template <class T>                                                                                                 \
  __VA_ARGS__ void dots_##NAME(                                                                                      \
      T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns) {                          \
    all_dots<T, BYTES, VECTORS>(out, left, right, rows, pool, columns);                                              \
  }

PUMA_KERNELS(portable, 16, 2)
#if defined(__x86_64__)
PUMA_KERNELS(avx2, 32, 3, PUMA_AVX2)
PUMA_KERNELS(avx512, 64, 4, PUMA_AVX512)
#endif

template <class T>
Kernels<T> best_kernels() {
#if defined(__x86_64__)
  return choose<Kernels<T>>(
      {&product_portable<T>, &dots_portable<T>}, {&product_avx2<T>, &dots_avx2<T>},
      {&product_avx512<T>, &dots_avx512<T>});
#else
  return {&product_portable<T>, &dots_portable<T>};
#endif
}

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> chosen = best_kernels<T>();
  return chosen;
}

}  // namespace

template <class T>
void multiply(T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns) {
  kernels<T>().product(out, {left, pool, 1}, right, rows, pool, 0, columns, columns);
}

template <class T>
void multiply_left_transposed(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns, int64_t begin, int64_t end) {
  kernels<T>().product(out, {left, 1, pool}, right, pool, rows, begin, end, columns);
}

template <class T>
void multiply_right_transposed(T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns) {
  kernels<T>().dots(out, left, right, rows, pool, columns);
}

#define PUMA_PRODUCTS(T)                                                                                        \
  template void multiply<T>(T*, const T*, const T*, int64_t, int64_t, int64_t);                                 \
  template void multiply_left_transposed<T>(                                                                    \
      T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t);                                     \
  template void multiply_right_transposed<T>(T*, const T*, const T*, int64_t, int64_t, int64_t);

PUMA_PRODUCTS(float)
PUMA_PRODUCTS(double)

}  // namespace puma
