#include "prompt_products.h"

#include <algorithm>

#include "lanes.h"
#include "lines.h"
#include "simd.h"
#include "tile.h"

namespace puma {
namespace {

// ---- out = left @ right transposed ----

template <class T>
struct Factors {
  const T *left, *right;
};

// Rows of left and right, as many as sums of one vector's lanes; those behind the last are the last once more. With
// `squares` half of the sums are those of left's squares and of `right_of_squares`, and go to `out_of_squares`.
template <class T, int bytes, bool squares>
PUMA_INLINE void dots(
    T* out, T* out_of_squares, const T* left, int64_t stride, const T* right, const T* right_of_squares, int64_t rows,
    int64_t pool, int64_t columns) {
  using V = typename Vector<T, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(T)), kKinds = squares ? 2 : 1;
  constexpr int J = std::max(1, std::min(W, 4) / kKinds), I = W / (J * kKinds), kSecond = I * J;
  const auto row_of_left = [=](int64_t row) { return left + std::min(row, rows - 1) * stride; };
  for (int64_t row = 0; row < rows; row += I) {
    const T* l[I];
    PUMA_UNROLL for (int i = 0; i < I; ++i) l[i] = row_of_left(row + i);
    for (int64_t m = 0; m < pool; m += J) {
      const T *r[J], *s[J];
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        const int64_t place = std::min(m + j, pool - 1) * columns;
        r[j] = right + place;
        if constexpr (squares) s[j] = right_of_squares + place;
      }
      const T* const ahead = row_of_left(row + I + m / J % I);  // one of the rows that come next
      __builtin_prefetch(row_of_left(row + 5 * I + m / J % I));  // later rows: where their pages lie takes longer
      alignas(sizeof(V)) V sum[W];
      PUMA_UNROLL for (int x = 0; x < W; ++x) sum[x] = V{};
      int64_t c = 0;
      for (; c + W <= columns; c += W) {
        __builtin_prefetch(ahead + c);
        V b[J], b_of_squares[J];
        PUMA_UNROLL for (int j = 0; j < J; ++j) {
          b[j] = *reinterpret_cast<const V*>(r[j] + c);
          if constexpr (squares) b_of_squares[j] = *reinterpret_cast<const V*>(s[j] + c);
        }
        PUMA_UNROLL for (int i = 0; i < I; ++i) {
          V a = *reinterpret_cast<const V*>(l[i] + c);
          PUMA_IN_REGISTER(a);
          PUMA_UNROLL for (int j = 0; j < J; ++j) {
            sum[i * J + j] += a * b[j];
            if constexpr (squares) sum[kSecond + i * J + j] += a * a * b_of_squares[j];
          }
        }
      }
      V total = over_lanes<W, Sum>(sum);
      for (; c < columns; ++c) {
        PUMA_UNROLL for (int i = 0; i < I; ++i) {
          PUMA_UNROLL for (int j = 0; j < J; ++j) {
            total[i * J + j] += l[i][c] * r[j][c];
            if constexpr (squares) total[kSecond + i * J + j] += l[i][c] * l[i][c] * s[j][c];
          }
        }
      }
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        PUMA_UNROLL for (int j = 0; j < J; ++j) {
          if (row + i >= rows || m + j >= pool) continue;
          out[(row + i) * pool + m + j] = total[i * J + j];
          if constexpr (squares) out_of_squares[(row + i) * pool + m + j] = total[kSecond + i * J + j];
        }
      }
    }
  }
}

// ---- out = left @ right ----

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

template <class T>
struct Sums {
  T* out;
  const T* left;

  Sums row(int64_t m, int64_t stride) const { return {out + m * stride, left + m}; }
};

constexpr int64_t kRowsAhead = 12;

// I rows of out, columns [begin, end): as many tiles of J vectors as there are; returns the first column that is left.
// With `squared` also those of right's squares.
template <class T, int bytes, int I, int J, bool squares>
PUMA_INLINE int64_t sums_over_rows(
    Sums<T> plain, Sums<T> squared, const T* right, int64_t rows, int64_t pool, int64_t begin, int64_t end,
    int64_t stride) {
  using Tiled = Tile<T, bytes, I, J>;
  using V = typename Tiled::V;
  const auto write = [&](T* out, const Tiled& tile) PUMA_LAMBDA_INLINE {
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        *reinterpret_cast<V*>(out + i * stride + begin + j * Tiled::W) = tile.sum[i][j];
      }
    }
  };
  for (; begin + Tiled::kColumns <= end; begin += Tiled::kColumns) {
    Tiled tile, tile_of_squares;
    tile.clear();
    if constexpr (squares) tile_of_squares.clear();
    for (int64_t k = 0; k < rows; ++k) {
      V r[J];
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        r[j] = *reinterpret_cast<const V*>(right + k * stride + begin + j * Tiled::W);
        if constexpr (squares) __builtin_prefetch(right + (k + kRowsAhead) * stride + begin + j * Tiled::W);
      }
      tile.add(plain.left + k * pool, 1, r);
      if constexpr (squares) {
        PUMA_UNROLL for (int j = 0; j < J; ++j) r[j] *= r[j];
        tile_of_squares.add(squared.left + k * pool, 1, r);
      }
    }
    write(plain.out, tile);
    if constexpr (squares) write(squared.out, tile_of_squares);
  }
  return begin;
}

template <class T, int bytes, int I, int J, bool squares>
PUMA_INLINE int64_t some_rows_transposed(
    Sums<T> plain, Sums<T> squared, const T* right, int64_t rows, int64_t pool, int64_t m, int64_t begin, int64_t end,
    int64_t stride) {
  for (; m + I <= pool; m += I) {
    const Sums<T> a = plain.row(m, stride), b = squares ? squared.row(m, stride) : squared;  // null pointers stay that
    int64_t c = sums_over_rows<T, bytes, I, J, squares>(a, b, right, rows, pool, begin, end, stride);
    c = sums_over_rows<T, bytes, I, 1, squares>(a, b, right, rows, pool, c, end, stride);
    sums_over_rows<T, sizeof(T), I, 1, squares>(a, b, right, rows, pool, c, end, stride);
  }
  return m;
}

template <class T, int bytes, int I, int J, bool squares>
PUMA_INLINE void transposed_product(
    Sums<T> plain, Sums<T> squared, const T* right, int64_t rows, int64_t pool, int64_t begin, int64_t end,
    int64_t stride) {
  const int64_t m =
      some_rows_transposed<T, bytes, I, J, squares>(plain, squared, right, rows, pool, 0, begin, end, stride);
  some_rows_transposed<T, bytes, 1, J, squares>(plain, squared, right, rows, pool, m, begin, end, stride);
}

// The loops above for one instruction set.
template <class T>
struct Kernels {
  void (*dots)(
      T* out, T* out_of_squares, const T* left, int64_t stride, const T* right, const T* right_of_squares, int64_t rows,
      int64_t pool, int64_t columns);
  void (*product)(
      T* out, Factors<T> first, const T* by, Factors<T> second, int64_t rows, int64_t depth, int64_t columns,
      int64_t stride);
  void (*transposed)(
      Sums<T> plain, Sums<T> squared, const T* right, int64_t rows, int64_t pool, int64_t begin, int64_t end,
      int64_t stride);
};

// I by J vectors in products along the pool; in those over rows K by J, with squares L by J of both: as many as the
// registers hold.
#define PUMA_KERNELS(NAME, BYTES, I, J, K, L, ...)                                                                  \
  template <class T>                                                                                                \
  __VA_ARGS__ void dots_##NAME(                                                                                     \
      T* out, T* out_of_squares, const T* left, int64_t stride, const T* right, const T* right_of_squares,          \
      int64_t rows, int64_t pool, int64_t columns) {                                                                \
    if (out_of_squares == nullptr) {                                                                                \
      dots<T, BYTES, false>(out, nullptr, left, stride, right, nullptr, rows, pool, columns);                       \
    } else {                                                                                                        \
      dots<T, BYTES, true>(out, out_of_squares, left, stride, right, right_of_squares, rows, pool, columns);        \
    }                                                                                                               \
  }                                                                                                                 \
  template <class T>                                                                                                \
  __VA_ARGS__ void product_##NAME(                                                                                  \
      T* out, Factors<T> first, const T* by, Factors<T> second, int64_t rows, int64_t depth, int64_t columns,       \
      int64_t stride) {                                                                                             \
    product<T, BYTES, I, J>(out, first, by, second, rows, depth, columns, stride);                                  \
  }                                                                                                                 \
  template <class T>                                                                                                \
  __VA_ARGS__ void transposed_##NAME(                                                                               \
      Sums<T> plain, Sums<T> squared, const T* right, int64_t rows, int64_t pool, int64_t begin, int64_t end,       \
      int64_t stride) {                                                                                             \
    if (squared.out == nullptr) {                                                                                   \
      transposed_product<T, BYTES, K, J, false>(plain, squared, right, rows, pool, begin, end, stride);             \
    } else {                                                                                                        \
      transposed_product<T, BYTES, L, J, true>(plain, squared, right, rows, pool, begin, end, stride);              \
    }                                                                                                               \
  }

PUMA_KERNELS(portable, 16, 4, 2, 5, 2)
#if defined(__x86_64__)
PUMA_KERNELS(avx2, 32, 6, 2, 5, 2, PUMA_AVX2)
PUMA_KERNELS(avx512, 64, 14, 2, 10, 5, PUMA_AVX512)
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
  kernels<T>().dots(out, nullptr, left, stride, right, nullptr, rows, pool, columns);
}

template <class T>
void multiply_right_transposed_with_squares(
    T* out, T* out_of_squares, const T* left, const T* right, const T* right_of_squares, int64_t rows, int64_t pool,
    int64_t columns) {
  kernels<T>().dots(out, out_of_squares, left, columns, right, right_of_squares, rows, pool, columns);
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
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns, int64_t begin, int64_t end) {
  kernels<T>().transposed({out, left}, {nullptr, nullptr}, right, rows, pool, begin, end, columns);
}

template <class T>
void multiply_left_transposed_with_squares(
    T* out, T* out_of_squares, const T* left, const T* left_of_squares, const T* right, int64_t rows, int64_t pool,
    int64_t columns, int64_t begin, int64_t end) {
  kernels<T>().transposed({out, left}, {out_of_squares, left_of_squares}, right, rows, pool, begin, end, columns);
}

#define PUMA_PRODUCTS(T)                                                                                          \
  template void multiply_right_transposed<T>(T*, const T*, int64_t, const T*, int64_t, int64_t, int64_t);         \
  template void multiply_right_transposed_with_squares<T>(                                                        \
      T*, T*, const T*, const T*, const T*, int64_t, int64_t, int64_t);                                           \
  template void multiply<T>(T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t);                 \
  template void multiply_and_add<T>(                                                                              \
      T*, const T*, const T*, const T*, const T*, const T*, int64_t, int64_t, int64_t);                           \
  template void multiply_left_transposed<T>(                                                                      \
      T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t);                                       \
  template void multiply_left_transposed_with_squares<T>(                                                         \
      T*, T*, const T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t);

PUMA_PRODUCTS(float)
PUMA_PRODUCTS(double)

}  // namespace puma
