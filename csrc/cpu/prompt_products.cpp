#include "prompt_products.h"

#include <algorithm>

#include "lanes.h"
#include "lines.h"
#include "simd.h"
#include "tile.h"

namespace puma {
namespace {

// ---- out = left @ right transposed ----

// Rows of left and right, as many as sums of one vector's lanes; those behind the last are the last once more.
template <class T, int bytes>
PUMA_INLINE void dots(
    T* out, const T* left, int64_t stride, const T* right, int64_t rows, int64_t pool, int64_t columns) {
  using V = typename Vector<T, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(T)), J = std::min(W, 4), I = W / J;
  const auto row_of_left = [=](int64_t row) { return left + std::min(row, rows - 1) * stride; };
  for (int64_t row = 0; row < rows; row += I) {
    const T* l[I];
    PUMA_UNROLL for (int i = 0; i < I; ++i) l[i] = row_of_left(row + i);
    for (int64_t m = 0; m < pool; m += J) {
      const T* r[J];
      PUMA_UNROLL for (int j = 0; j < J; ++j) r[j] = right + std::min(m + j, pool - 1) * columns;
      const T* const ahead = row_of_left(row + I + m / J % I);  // one of the rows that come next
      V sum[W];
      PUMA_UNROLL for (int x = 0; x < W; ++x) sum[x] = V{};
      int64_t c = 0;
      for (; c + W <= columns; c += W) {
        __builtin_prefetch(ahead + c);
        V b[J];
        PUMA_UNROLL for (int j = 0; j < J; ++j) b[j] = *reinterpret_cast<const V*>(r[j] + c);
        PUMA_UNROLL for (int i = 0; i < I; ++i) {
          V a = *reinterpret_cast<const V*>(l[i] + c);
          PUMA_IN_REGISTER(a);
          PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i * J + j] += a * b[j];
        }
      }
      V total = over_lanes<W, Sum>(sum);
      for (; c < columns; ++c) {
        PUMA_UNROLL for (int i = 0; i < I; ++i) {
          PUMA_UNROLL for (int j = 0; j < J; ++j) total[i * J + j] += l[i][c] * r[j][c];
        }
      }
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        PUMA_UNROLL for (int j = 0; j < J; ++j) {
          if (row + i < rows && m + j < pool) out[(row + i) * pool + m + j] = total[i * J + j];
        }
      }
    }
  }
}

// ---- out = left @ right ----

template <class V, class T>
PUMA_INLINE V load_some(const T* in, int64_t count) {
  V value{};
  for (int64_t i = 0; i < count; ++i) value[i] = in[i];
  return value;
}

template <class V, class T>
PUMA_INLINE void store_some(T* out, V value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = value[i];
}

// Columns of a (depth, stride) matrix as panels, zeros behind the last column.
template <class T>
PUMA_INLINE void pack_panels(T* out, const T* matrix, int64_t depth, int64_t stride, int64_t columns, int64_t panel) {
  for (int64_t column = 0; column < columns; column += panel) {
    const int64_t some = std::min(panel, columns - column);
    for (int64_t k = 0; k < depth; ++k, out += panel) {
      const T* const in = matrix + k * stride + column;
      std::fill(std::copy(in, in + some, out), out + panel, T{0});
    }
  }
}

// `some` rows of a (rows, depth) matrix, one column behind the other; zeros behind the last row.
template <class T, int I>
PUMA_INLINE void pack_rows(T* out, const T* matrix, int64_t depth, int64_t some) {
  for (int64_t k = 0; k < depth; ++k) {
    PUMA_UNROLL for (int64_t i = 0; i < I; ++i) out[k * I + i] = i < some ? matrix[i * depth + k] : T{0};
  }
}

template <class T>
struct Factors {
  const T *left, *right;
};

// stride: of out, by and the right-hand sides. Without `by` there is no second product.
template <class T, int bytes, int I, int J>
PUMA_INLINE void product(
    T* out, Factors<T> first, const T* by, Factors<T> second, int64_t rows, int64_t depth, int64_t columns,
    int64_t stride) {
  using Sums = Tile<T, bytes, I, J>;
  using V = typename Sums::V;
  constexpr int W = Sums::W;
  const int64_t panels = (columns + Sums::kColumns - 1) / Sums::kColumns, panel_elements = depth * Sums::kColumns;
  const auto right = lines<T>((by == nullptr ? 1 : 2) * panels * panel_elements);
  T* const second_right = right.get() + panels * panel_elements;
  pack_panels(right.get(), first.right, depth, stride, columns, Sums::kColumns);
  if (by != nullptr) pack_panels(second_right, second.right, depth, stride, columns, Sums::kColumns);
  const auto left = lines<T>(2 * I * depth);
  T* const second_left = left.get() + I * depth;
  for (int64_t row = 0; row < rows; row += I) {
    const int64_t some = std::min<int64_t>(I, rows - row);
    pack_rows<T, I>(left.get(), first.left + row * depth, depth, some);
    if (by != nullptr) pack_rows<T, I>(second_left, second.left + row * depth, depth, some);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t column = panel * Sums::kColumns;
      Sums tile;
      tile.clear();
      if (by != nullptr) {
        const T* r = second_right + panel * panel_elements;
        for (int64_t k = 0; k < depth; ++k, r += Sums::kColumns) tile.add(second_left + k * I, 1, r);
        PUMA_UNROLL for (int i = 0; i < I; ++i) {
          PUMA_UNROLL for (int j = 0; j < J; ++j) {
            const T* const here = by + (row + i) * stride + column + j * W;
            const int64_t left_over = columns - column - j * W;
            if (i >= some) continue;
            tile.sum[i][j] *= left_over >= W ? *reinterpret_cast<const V*>(here) : load_some<V>(here, left_over);
          }
        }
      }
      const T* r = right.get() + panel * panel_elements;
      for (int64_t k = 0; k < depth; ++k, r += Sums::kColumns) tile.add(left.get() + k * I, 1, r);
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        PUMA_UNROLL for (int j = 0; j < J; ++j) {
          T* const here = out + (row + i) * stride + column + j * W;
          const int64_t left_over = columns - column - j * W;
          if (i >= some) continue;
          if (left_over >= W) {
            *reinterpret_cast<V*>(here) = tile.sum[i][j];
          } else {
            store_some(here, tile.sum[i][j], left_over);
          }
          // The rows of the next tile, which are read before they are written.
          __builtin_prefetch(here + I * stride, 1, 2);
        }
      }
    }
  }
}

// ---- out = left transposed @ right ----

// I rows of out, columns [begin, end): as many tiles of J vectors as there are; returns the first column that is left.
template <class T, int bytes, int I, int J, bool squared>
PUMA_INLINE int64_t sums_over_rows(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t begin, int64_t end, int64_t stride) {
  using Sums = Tile<T, bytes, I, J>;
  using V = typename Sums::V;
  for (; begin + Sums::kColumns <= end; begin += Sums::kColumns) {
    Sums tile;
    tile.clear();
    for (int64_t k = 0; k < rows; ++k) {
      V r[J];
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        r[j] = *reinterpret_cast<const V*>(right + k * stride + begin + j * Sums::W);
        if constexpr (squared) r[j] *= r[j];
      }
      tile.add(left + k * pool, 1, r);
    }
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        *reinterpret_cast<V*>(out + i * stride + begin + j * Sums::W) = tile.sum[i][j];
      }
    }
  }
  return begin;
}

template <class T, int bytes, int I, int J, bool squared>
PUMA_INLINE int64_t some_rows_transposed(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t m, int64_t begin, int64_t end,
    int64_t stride) {
  for (; m + I <= pool; m += I) {
    T* const here = out + m * stride;
    int64_t c = sums_over_rows<T, bytes, I, J, squared>(here, left + m, right, rows, pool, begin, end, stride);
    c = sums_over_rows<T, bytes, I, 1, squared>(here, left + m, right, rows, pool, c, end, stride);
    sums_over_rows<T, sizeof(T), I, 1, squared>(here, left + m, right, rows, pool, c, end, stride);
  }
  return m;
}

template <class T, int bytes, int I, int J, bool squared>
PUMA_INLINE void transposed_product(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t begin, int64_t end, int64_t stride) {
  int64_t m = some_rows_transposed<T, bytes, I, J, squared>(out, left, right, rows, pool, 0, begin, end, stride);
  some_rows_transposed<T, bytes, 1, J, squared>(out, left, right, rows, pool, m, begin, end, stride);
}

// The loops above for one instruction set.
template <class T>
struct Kernels {
  void (*dots)(T* out, const T* left, int64_t stride, const T* right, int64_t rows, int64_t pool, int64_t columns);
  void (*product)(
      T* out, Factors<T> first, const T* by, Factors<T> second, int64_t rows, int64_t depth, int64_t columns,
      int64_t stride);
  void (*transposed)(
      T* out, const T* left, const T* right, bool squared, int64_t rows, int64_t pool, int64_t begin, int64_t end,
      int64_t stride);
};

// I by J vectors in products along the pool, K by J in those over rows: as many as the registers hold.
#define PUMA_KERNELS(NAME, BYTES, I, J, K, ...)                                                                     \
  template <class T>                                                                                                \
  __VA_ARGS__ void dots_##NAME(                                                                                     \
      T* out, const T* left, int64_t stride, const T* right, int64_t rows, int64_t pool, int64_t columns) {         \
    dots<T, BYTES>(out, left, stride, right, rows, pool, columns);                                                  \
  }                                                                                                                 \
  template <class T>                                                                                                \
  __VA_ARGS__ void product_##NAME(                                                                                  \
      T* out, Factors<T> first, const T* by, Factors<T> second, int64_t rows, int64_t depth, int64_t columns,       \
      int64_t stride) {                                                                                             \
    product<T, BYTES, I, J>(out, first, by, second, rows, depth, columns, stride);                                  \
  }                                                                                                                 \
  template <class T>                                                                                                \
  __VA_ARGS__ void transposed_##NAME(                                                                               \
      T* out, const T* left, const T* right, bool squared, int64_t rows, int64_t pool, int64_t begin, int64_t end,  \
      int64_t stride) {                                                                                             \
    if (squared) {                                                                                                  \
      transposed_product<T, BYTES, K, J, true>(out, left, right, rows, pool, begin, end, stride);                   \
    } else {                                                                                                        \
      transposed_product<T, BYTES, K, J, false>(out, left, right, rows, pool, begin, end, stride);                  \
    }                                                                                                               \
  }

PUMA_KERNELS(portable, 16, 4, 2, 5)
#if defined(__x86_64__)
PUMA_KERNELS(avx2, 32, 6, 2, 5, PUMA_AVX2)
PUMA_KERNELS(avx512, 64, 14, 2, 10, PUMA_AVX512)
#endif

template <class T>
Kernels<T> best_kernels() {
#if defined(__x86_64__)
  return choose<Kernels<T>>(
      {&dots_portable<T>, &product_portable<T>, &transposed_portable<T>},
      {&dots_avx2<T>, &product_avx2<T>, &transposed_avx2<T>},
      {&dots_avx512<T>, &product_avx512<T>, &transposed_avx512<T>});
#else
  return {&dots_portable<T>, &product_portable<T>, &transposed_portable<T>};
#endif
}

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> chosen = best_kernels<T>();
  return chosen;
}

}  // namespace

template <class T>
void multiply_right_transposed(
    T* out, const T* left, int64_t stride, const T* right, int64_t rows, int64_t pool, int64_t columns) {
  kernels<T>().dots(out, left, stride, right, rows, pool, columns);
}

template <class T>
void multiply(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns, int64_t begin, int64_t end) {
  kernels<T>().product(out + begin, {left, right + begin}, nullptr, {}, rows, pool, end - begin, columns);
}

template <class T>
void multiply_and_add(
    T* out, const T* left, const T* right, const T* by, const T* second_left, const T* second_right, int64_t rows,
    int64_t pool, int64_t columns) {
  kernels<T>().product(out, {left, right}, by, {second_left, second_right}, rows, pool, columns, columns);
}

template <class T>
void multiply_left_transposed(
    T* out, const T* left, const T* right, bool squared, int64_t rows, int64_t pool, int64_t columns, int64_t begin,
    int64_t end) {
  kernels<T>().transposed(out, left, right, squared, rows, pool, begin, end, columns);
}

#define PUMA_PRODUCTS(T)                                                                                          \
  template void multiply_right_transposed<T>(T*, const T*, int64_t, const T*, int64_t, int64_t, int64_t);         \
  template void multiply<T>(T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t);                 \
  template void multiply_and_add<T>(                                                                              \
      T*, const T*, const T*, const T*, const T*, const T*, int64_t, int64_t, int64_t);                           \
  template void multiply_left_transposed<T>(                                                                      \
      T*, const T*, const T*, bool, int64_t, int64_t, int64_t, int64_t, int64_t);

PUMA_PRODUCTS(float)
PUMA_PRODUCTS(double)

}  // namespace puma
