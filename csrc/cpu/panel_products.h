// Products of matrices that lie as panels: their columns in strips as wide as a tile, one strip behind the other, each row
// by row. Along a strip they are a product's right-hand side; and as a left-hand side a tile finds all its rows at fixed
// distances from one address. Rows and columns that only fill up tiles are computed with, but their results are not used.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"
#include "lines.h"
#include "simd.h"
#include "tile.h"

namespace puma {

// Rows of a product that sums over queries between two fetches of what is used soon.
constexpr int64_t kBetweenFetches = 32;

// Rows of several matrices, (N, D) each, that the next head reads or writes: fetched a little at a time while products
// are computed. Worth it also for what will be written: a processor reads it first.
class RowsAhead {
 public:
  // bytes: of a row; calls: how often fetch will be called.
  RowsAhead(int64_t rows, int64_t bytes, int64_t calls) : rows_(rows), bytes_(bytes), calls_(calls) {}

  template <class T>
  void add(const T* matrix, int64_t stride) {
    sources_[count_++] = {reinterpret_cast<const char*>(matrix), stride * static_cast<int64_t>(sizeof(T))};
    pieces_ = (count_ * rows_ + calls_ - 1) / std::max<int64_t>(calls_, 1);
  }

  PUMA_INLINE void fetch() {
    for (int64_t piece = 0; piece < pieces_; ++piece) {
      if (rows_left_ == 0) {
        if (source_ == count_) return;
        here_ = sources_[source_].first;
        stride_ = sources_[source_++].stride;
        rows_left_ = rows_;
      }
      // A little too much for some D: the next head's.
      for (int64_t byte = 0; byte < bytes_; byte += kLinesAtOnce * kLineBytes) {
        PUMA_UNROLL for (int64_t line = 0; line < kLinesAtOnce; ++line) {
          __builtin_prefetch(here_ + byte + line * kLineBytes, 0, kToSecondLevel);
        }
      }
      here_ += stride_;
      --rows_left_;
    }
  }

 private:
  static constexpr int64_t kMost = 8, kLinesAtOnce = 4;
  static constexpr int kToSecondLevel = 2;
  struct Source {
    const char* first;
    int64_t stride;
  };

  int64_t rows_, bytes_, calls_, pieces_ = 0, count_ = 0, source_ = 0, rows_left_ = 0, stride_ = 0;
  const char* here_ = nullptr;
  Source sources_[kMost];
};

// out = factor * in (rows, columns), whose rows are `stride` elements apart, as panels of P columns and all_rows rows.
template <int bytes, int P, class T>
PUMA_INLINE void pack(
    float* out, const T* in, int64_t stride, int64_t rows, int64_t all_rows, int64_t columns, float factor) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float));
  for (int64_t row = 0; row < rows; ++row, in += stride, out += P) {
    for (int64_t c = 0; c < columns; c += W) store(out + c / P * P * all_rows + c % P, factor * load<V>(in + c));
  }
}

// in (rows, columns) transposed, as panels of P columns; zeros behind the last, up to a whole vector.
template <int bytes, int P, class T>
PUMA_INLINE void pack_turned(float* out, const T* in, int64_t stride, int64_t rows, int64_t columns) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float));
  for (int64_t row = 0; row < rows; row += W, in += W * stride) {
    float* const panel = out + row / P * P * columns + row % P;
    for (int64_t c = 0; c < columns; c += W) {
      alignas(sizeof(V)) V square[W];
      PUMA_UNROLL for (int i = 0; i < W; ++i) square[i] = row + i < rows ? load<V>(in + i * stride + c) : V{};
      transpose<W>(square);
      PUMA_UNROLL for (int i = 0; i < W; ++i) store(panel + (c + i) * P, square[i]);
    }
  }
}

// tile = left @ right: panels of left, `next` elements apart, and `depth` rows of one panel of right.
template <int P, int bytes, int I, int J>
PUMA_INLINE void multiply(
    Tile<float, bytes, I, J>& tile, const float* left, int64_t next, const float* right, int64_t depth,
    RowsAhead& ahead) {
  tile.clear();
  for (; depth >= P; depth -= P, left += next) {
    ahead.fetch();
    _Pragma("GCC unroll 4") for (int k = 0; k < P; ++k, right += P) tile.add(left + k, P, right);
  }
  for (int64_t k = 0; k < depth; ++k, right += P) tile.add(left + k, P, right);
}

// tile = left (depth, rows of the tile) transposed @ right; left's rows are `stride` elements apart.
template <int P, int bytes, int I, int J>
PUMA_INLINE void multiply_turned(
    Tile<float, bytes, I, J>& tile, const float* left, int64_t stride, const float* right, int64_t depth,
    RowsAhead& ahead) {
  tile.clear();
  for (int64_t k = 0; k < depth;) {
    ahead.fetch();
    const int64_t end = std::min(k + kBetweenFetches, depth);
    _Pragma("GCC unroll 4") for (; k < end; ++k, left += stride, right += P) tile.add(left, 1, right);
  }
}

template <int bytes, int I, int J>
PUMA_INLINE void store_tile(float* out, int64_t stride, const Tile<float, bytes, I, J>& tile) {
  constexpr int W = Tile<float, bytes, I, J>::W;
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) store(out + i * stride + j * W, tile.sum[i][j]);
  }
}

// The tile's first `rows` rows, each times its factor if there is one, in place of what is there or added to it.
template <int bytes, int I, int J>
PUMA_INLINE void store_some(
    float* out, int64_t stride, int64_t rows, const float* factor, bool add, const Tile<float, bytes, I, J>& tile) {
  using V = typename Tile<float, bytes, I, J>::V;
  constexpr int W = Tile<float, bytes, I, J>::W;
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    if (i >= rows) break;
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      float* const here = out + i * stride + j * W;
      const V value = factor == nullptr ? tile.sum[i][j] : factor[i] * tile.sum[i][j];
      store(here, add ? load<V>(here) + value : value);
    }
  }
}

// out = left, a tile's rows, @ right (depth, columns). Rows of out are `stride` elements apart, and its panels `panel`.
template <int bytes, int I, int J>
PUMA_INLINE void product(
    float* out, int64_t stride, int64_t panel, const float* left, int64_t next, const float* right, int64_t depth,
    int64_t columns, RowsAhead& ahead) {
  constexpr int W = Tile<float, bytes, I, J>::W, P = J * W;
  for (int64_t column = 0; column < columns; column += P, right += P * depth, out += panel) {
    if (columns - column > W) {
      Tile<float, bytes, I, J> tile;
      multiply<P>(tile, left, next, right, depth, ahead);
      store_tile(out, stride, tile);
    } else {
      Tile<float, bytes, I, 1> tile;
      multiply<P>(tile, left, next, right, depth, ahead);
      store_tile(out, stride, tile);
    }
  }
}

// The first `rows` rows of left, panels of a tile's rows, @ right (depth, columns), each times its factor.
template <int bytes, int I, int J>
PUMA_INLINE void scaled_product(
    float* out, int64_t stride, int64_t rows, const float* factor, const float* left, const float* right,
    int64_t depth, int64_t columns, RowsAhead& ahead) {
  constexpr int W = Tile<float, bytes, I, J>::W, P = J * W;
  for (int64_t first = 0; first < depth; first += kLongestSum, left += kLongestSum * I) {
    const int64_t some = std::min(kLongestSum, depth - first);
    for (int64_t column = 0; column < columns; column += P) {
      const float* const panel = right + column * depth + first * P;
      if (columns - column > W) {
        Tile<float, bytes, I, J> tile;
        multiply<P>(tile, left, P * I, panel, some, ahead);
        store_some(out + column, stride, rows, factor, first > 0, tile);
      } else {
        Tile<float, bytes, I, 1> tile;
        multiply<P>(tile, left, P * I, panel, some, ahead);
        store_some(out + column, stride, rows, factor, first > 0, tile);
      }
    }
  }
}

// out (rows, columns) = or += left (depth, rows) transposed @ right, panels of right_rows rows.
template <int bytes, int I, int J>
PUMA_INLINE void turned_product(
    float* out, int64_t stride, bool add, const float* left, int64_t left_stride, int64_t rows, const float* right,
    int64_t right_rows, int64_t depth, int64_t columns, RowsAhead& ahead) {
  constexpr int W = Tile<float, bytes, I, J>::W, P = J * W;
  for (int64_t column = 0; column < columns; column += P, right += P * right_rows, out += P) {
    for (int64_t row = 0; row < rows; row += I) {
      if (columns - column > W) {
        Tile<float, bytes, I, J> tile;
        multiply_turned<P>(tile, left + row, left_stride, right, depth, ahead);
        store_some(out + row * stride, stride, rows - row, nullptr, add, tile);
      } else {
        Tile<float, bytes, I, 1> tile;
        multiply_turned<P>(tile, left + row, left_stride, right, depth, ahead);
        store_some(out + row * stride, stride, rows - row, nullptr, add, tile);
      }
    }
  }
}

}  // namespace puma
