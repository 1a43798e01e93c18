#include "attention_tiles.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "exponential.h"
#include "lanes.h"
#include "simd.h"
#include "tile.h"

// Panels of a matrix are its columns in strips as wide as a tile, one strip behind the other, each row by row. Along a
// strip they are a product's right-hand side; and as a left-hand side a tile finds all its rows at fixed distances from
// one address. Rows and columns that only fill up tiles are computed with, but their results are not used.

namespace puma {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kColumns = 16;  // D is a multiple
constexpr int64_t kMostHeadDim = 128;
constexpr int64_t kMostTokens = 4096;  // scratch of some MiB
// Bytes of a block of queries' weights in the backward: they and their gradients stay in the second-level cache.
constexpr int64_t kBlockBytes = 256 * 1024;
// Rows of a product that sums over queries between two fetches of what is used soon.
constexpr int64_t kBetweenFetches = 32;

// Rows of several matrices, (N, D) each, that the next head reads or writes: fetched a little at a time while products
// are computed. Worth it also for what will be written: a processor reads it first.
class RowsAhead {
 public:
  // calls: how often fetch will be called.
  RowsAhead(int64_t rows, int64_t columns, int64_t calls)
      : rows_(rows), bytes_(columns * static_cast<int64_t>(sizeof(float))), calls_(calls) {}

  void add(const float* matrix, int64_t stride) {
    sources_[count_++] = {reinterpret_cast<const char*>(matrix), stride * static_cast<int64_t>(sizeof(float))};
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
  static constexpr int64_t kMost = 8, kLineBytes = 64, kLinesAtOnce = 4;
  static constexpr int kToSecondLevel = 2;
  struct Source {
    const char* first;
    int64_t stride;
  };

  int64_t rows_, bytes_, calls_, pieces_ = 0, count_ = 0, source_ = 0, rows_left_ = 0, stride_ = 0;
  const char* here_ = nullptr;
  Source sources_[kMost];
};

// ---- Packing ----

// out = factor * in (rows, columns), whose rows are `stride` elements apart, as panels of P columns and all_rows rows.
template <int bytes, int P>
PUMA_INLINE void pack(
    float* out, const float* in, int64_t stride, int64_t rows, int64_t all_rows, int64_t columns, float factor) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float));
  for (int64_t row = 0; row < rows; ++row, in += stride, out += P) {
    for (int64_t c = 0; c < columns; c += W) store(out + c / P * P * all_rows + c % P, factor * load<V>(in + c));
  }
}

// in (rows, columns) transposed, as panels of P columns; zeros behind the last, up to a whole vector.
template <int bytes, int P>
PUMA_INLINE void pack_turned(float* out, const float* in, int64_t stride, int64_t rows, int64_t columns) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float));
  for (int64_t row = 0; row < rows; row += W, in += W * stride) {
    float* const panel = out + row / P * P * columns + row % P;
    for (int64_t c = 0; c < columns; c += W) {
      V square[W];
      PUMA_UNROLL for (int i = 0; i < W; ++i) square[i] = row + i < rows ? load<V>(in + i * stride + c) : V{};
      transpose<W>(square);
      PUMA_UNROLL for (int i = 0; i < W; ++i) store(panel + (c + i) * P, square[i]);
    }
  }
}

// ---- Products ----

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

// ---- Softmax ----

// 0, 1, 2, ...
template <class Index, int... lane>
PUMA_INLINE Index counted(std::integer_sequence<int, lane...> /*lanes*/) {
  return Index{lane...};
}

// The first `count` lanes of value, the others minus infinity.
template <class V>
PUMA_INLINE V only(V value, int64_t count) {
  using Index = typename Vector<int32_t, sizeof(V)>::type;
  constexpr int W = sizeof(V) / sizeof(float);
  const auto lane = counted<Index>(std::make_integer_sequence<int, W>{});
  return lane < static_cast<int32_t>(count) ? value : V{} - kInfinity;
}

// Panels of I rows of scores become exp(score - the row's largest).
template <int bytes, int I, int J>
PUMA_INLINE void exponentials(float* panels, int64_t columns, float* largest, float* sum) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float)), P = J * W;
  const int64_t whole = (columns - 1) / P;
  float* const end = panels + whole * P * I;
  V row[W];
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    V most = V{} - kInfinity;
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      float* const here = end + i * P + j * W;
      const V score = only(load<V>(here), columns - whole * P - j * W);
      store(here, score);
      most = most > score ? most : score;
    }
    for (const float* in = panels + i * P; in < end; in += P * I) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        const V score = load<V>(in + j * W);
        most = most > score ? most : score;
      }
    }
    row[i] = most;
  }
  PUMA_UNROLL for (int i = I; i < W; ++i) row[i] = row[0];
  store(largest, over_lanes<W, Maximum>(row));
  for (int i = 0; i < I; ++i) {
    V total[J] = {};
    for (float* here = panels + i * P; here < end + P * I; here += P * I) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        const V weight = exponential(load<V>(here + j * W) - largest[i]);
        store(here + j * W, weight);
        total[j] += weight;
      }
    }
    row[i] = total[0];
    PUMA_UNROLL for (int j = 1; j < J; ++j) row[i] += total[j];
  }
  PUMA_UNROLL for (int i = I; i < W; ++i) row[i] = row[0];
  store(sum, over_lanes<W, Sum>(row));
}

// Rows of weights = exp(scores - logsumexp), in place of the scores, and of score_grads = weights * (grads - their mean
// under the weights), in place of the weights' gradients and as panels.
template <int bytes, int I, int J>
PUMA_INLINE void softmax_backward(
    float* weights, float* grads, float* panels, int64_t stride, int64_t rows, int64_t columns,
    const float* logsumexp) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float)), P = J * W;
  const int64_t last = (columns - 1) / W * W;
  V row[W];
  PUMA_UNROLL for (int i = 0; i < W; ++i) row[i] = V{};
  for (int64_t i = 0; i < rows; ++i) {
    float *const w = weights + i * stride, *const g = grads + i * stride;
    store(w + last, only(load<V>(w + last), columns - last));
    V total{};
    for (int64_t c = 0; c <= last; c += W) {
      const V weight = exponential(load<V>(w + c) - logsumexp[i]);
      store(w + c, weight);
      total += weight * load<V>(g + c);
    }
    row[i] = total;
  }
  float mean[W];
  store(mean, over_lanes<W, Sum>(row));
  for (int64_t i = 0; i < rows; ++i) {
    float *const w = weights + i * stride, *const g = grads + i * stride;
    float* out = panels + i * P;
    int64_t c = 0;
    for (; c + P <= columns; c += P, out += P * I) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        const V grad = load<V>(w + c + j * W) * (load<V>(g + c + j * W) - mean[i]);
        store(g + c + j * W, grad);
        store(out + j * W, grad);
      }
    }
    for (; c < columns; c += W, out += W) {
      const V grad = load<V>(w + c) * (load<V>(g + c) - mean[i]);
      store(g + c, grad);
      store(out, grad);
    }
  }
}

// ---- Heads ----

template <int bytes, int I, int J>
PUMA_INLINE void forward_head(const AttentionForward& a, int64_t head, bool is_last) {
  using Sums = Tile<float, bytes, I, J>;
  constexpr int P = Sums::kColumns, W = Sums::W;
  const int64_t tokens = a.sizes.tokens, width = a.sizes.head_dim;
  const int64_t row_in = a.sizes.qkv_row(), row_out = a.sizes.out_row();
  const int64_t steps = (tokens + I - 1) / I, key_panels = (tokens + P - 1) / P, panels = (width + P - 1) / P;
  RowsAhead ahead(tokens, width, steps * (key_panels * (width / P) + panels * (tokens / P)));
  if (!is_last) {
    for (const int64_t part : {1, 2, 0}) ahead.add(a.qkv + a.sizes.in_qkv(head + 1, part), row_in);
    ahead.add(a.out + a.sizes.in_out(head + 1), row_out);
  }
  pack_turned<bytes, P>(a.keys_turned.get(), a.qkv + a.sizes.in_qkv(head, 1), row_in, tokens, width);
  pack<bytes, P>(a.values.get(), a.qkv + a.sizes.in_qkv(head, 2), row_in, tokens, tokens, width, 1);
  const float* const queries = a.qkv + a.sizes.in_qkv(head, 0);
  float* const out = a.out + a.sizes.in_out(head);
  float* const logsumexp = a.logsumexp + head * tokens;
  float largest[W], sum[W];
  for (int64_t row = 0; row < tokens; row += I) {
    const int64_t rows = std::min<int64_t>(I, tokens - row);
    pack<bytes, P>(a.queries.get(), queries + row * row_in, row_in, rows, I, width, a.scale);
    product<bytes, I, J>(
        a.weights.get(), P, P * I, a.queries.get(), P * I, a.keys_turned.get(), width, tokens, ahead);
    exponentials<bytes, I, J>(a.weights.get(), tokens, largest, sum);
    for (int64_t i = 0; i < rows; ++i) {
      logsumexp[row + i] = largest[i] + std::log(sum[i]);
      sum[i] = 1 / sum[i];
    }
    scaled_product<bytes, I, J>(
        out + row * row_out, row_out, rows, sum, a.weights.get(), a.values.get(), tokens, width, ahead);
  }
}

template <int bytes, int I, int J>
PUMA_INLINE void backward_head(const AttentionBackward& a, int64_t head, bool is_last) {
  using Sums = Tile<float, bytes, I, J>;
  constexpr int P = Sums::kColumns;
  const int64_t tokens = a.sizes.tokens, width = a.sizes.head_dim;
  const int64_t row_in = a.sizes.qkv_row(), row_out = a.sizes.out_row();
  const int64_t steps = (tokens + I - 1) / I, key_panels = (tokens + P - 1) / P, panels = (width + P - 1) / P;
  RowsAhead ahead(
      tokens, width,
      steps * (2 * key_panels * (width / P) + panels * (tokens / P) + 2 * panels * (tokens / kBetweenFetches)));
  if (!is_last) {
    for (const int64_t part : {1, 2, 0}) ahead.add(a.qkv + a.sizes.in_qkv(head + 1, part), row_in);
    ahead.add(a.grad + a.sizes.in_out(head + 1), row_out);
    for (const int64_t part : {0, 2, 1}) ahead.add(a.grad_qkv + a.sizes.in_qkv(head + 1, part), row_in);
  }
  const auto part_of = [&](auto* tensor, int64_t part) { return tensor + a.sizes.in_qkv(head, part); };
  pack_turned<bytes, P>(a.keys_turned.get(), part_of(a.qkv, 1), row_in, tokens, width);
  pack_turned<bytes, P>(a.values_turned.get(), part_of(a.qkv, 2), row_in, tokens, width);
  pack<bytes, P>(a.keys.get(), part_of(a.qkv, 1), row_in, tokens, tokens, width, 1);
  float factor[I];
  std::fill_n(factor, I, a.scale);
  const int64_t next = P * a.block_rows;
  for (int64_t first = 0; first < tokens; first += a.block_rows) {
    const int64_t block = std::min(a.block_rows, tokens - first);
    pack<bytes, P>(
        a.queries.get(), part_of(a.qkv, 0) + first * row_in, row_in, block, a.block_rows, width, a.scale);
    pack<bytes, P>(
        a.grads.get(), a.grad + a.sizes.in_out(head) + first * row_out, row_out, block, a.block_rows, width, 1);
    for (int64_t row = 0; row < block; row += I) {
      const int64_t rows = std::min<int64_t>(I, block - row);
      float* const weights = a.weights.get() + row * a.row_elements;
      float* const score_grads = a.score_grads.get() + row * a.row_elements;
      product<bytes, I, J>(
          weights, a.row_elements, P, a.queries.get() + row * P, next, a.keys_turned.get(), width, tokens, ahead);
      product<bytes, I, J>(
          score_grads, a.row_elements, P, a.grads.get() + row * P, next, a.values_turned.get(), width, tokens, ahead);
      softmax_backward<bytes, I, J>(
          weights, score_grads, a.score_grad_tile.get(), a.row_elements, rows, tokens,
          a.logsumexp + head * tokens + first + row);
      scaled_product<bytes, I, J>(
          part_of(a.grad_qkv, 0) + (first + row) * row_in, row_in, rows, factor, a.score_grad_tile.get(),
          a.keys.get(), tokens, width, ahead);
    }
    turned_product<bytes, I, J>(
        part_of(a.grad_qkv, 2), row_in, first > 0, a.weights.get(), a.row_elements, tokens, a.grads.get(),
        a.block_rows, block, width, ahead);
    turned_product<bytes, I, J>(
        part_of(a.grad_qkv, 1), row_in, first > 0, a.score_grads.get(), a.row_elements, tokens, a.queries.get(),
        a.block_rows, block, width, ahead);
  }
}

struct Kernels {
  void (*forward)(const AttentionForward& attention, int64_t head, bool is_last);
  void (*backward)(const AttentionBackward& attention, int64_t head, bool is_last);
};

#define PUMA_KERNELS(NAME, BYTES, ...)                                                       \
  static_assert(kTileRows<BYTES> <= BYTES / 4 && kColumns % (BYTES / 4) == 0);               \
  static_assert(kLongestSum % (kTileVectors * BYTES / 4) == 0);                              \
  __VA_ARGS__ void forward_##NAME(const AttentionForward& a, int64_t head, bool is_last) {   \
    forward_head<BYTES, kTileRows<BYTES>, kTileVectors>(a, head, is_last);                   \
  }                                                                                          \
  __VA_ARGS__ void backward_##NAME(const AttentionBackward& a, int64_t head, bool is_last) { \
    backward_head<BYTES, kTileRows<BYTES>, kTileVectors>(a, head, is_last);                  \
  }                                                                                          \
  constexpr Kernels NAME{forward_##NAME, backward_##NAME};

#if defined(__x86_64__)
PUMA_KERNELS(avx2, 32, PUMA_AVX2)
PUMA_KERNELS(avx512, 64, PUMA_AVX512)
#endif

// Only where attention_tiles_serve.
Kernels kernels() {
#if defined(__x86_64__)
  return choose(Kernels{}, avx2, avx512);
#else
  return {};
#endif
}

// Memory for (rows, columns) panels.
Lines<float> panels(int64_t rows, int64_t columns) {
  return lines<float>(rows * rounded_up(columns, tile_columns()));
}

// The same for left-hand sides, whose last tile may have rows that were never written: what is there by chance may be
// subnormal and slow.
Lines<float> zero_panels(int64_t rows, int64_t columns) {
  return zero_lines<float>(rows * rounded_up(columns, tile_columns()));
}

// The same for rows, with zeros behind the last column.
Lines<float> padded_rows(int64_t rows, int64_t row_elements, int64_t columns) {
  Lines<float> memory = lines<float>(rows * row_elements);
  for (int64_t row = 0; row < rows; ++row) {
    std::fill(memory.get() + row * row_elements + columns, memory.get() + (row + 1) * row_elements, 0.0F);
  }
  return memory;
}

// Whole vectors and tiles; an odd number of cache lines, or all rows would share a few places in the cache.
int64_t row_elements_for(int64_t tokens) {
  constexpr int64_t kLineElements = 16;
  const int64_t needed = std::max(rounded_up(tokens, tile_rows()), rounded_up(tokens, tile_columns()));
  return (rounded_up(needed, kLineElements) / kLineElements | 1) * kLineElements;
}

// Equal shares of whole tiles.
int64_t block_rows_for(int64_t tokens) {
  const int64_t tile = tile_rows();
  const int64_t row_bytes = row_elements_for(tokens) * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::max(kBlockBytes / row_bytes, 2 * tile) / tile * tile;
  const int64_t blocks = (tokens + most - 1) / most;
  return rounded_up((tokens + blocks - 1) / blocks, tile);
}

}  // namespace

bool attention_tiles_serve(int64_t tokens, int64_t head_dim) {
  return tile_rows() > 0 && 1 <= tokens && tokens <= kMostTokens && 1 <= head_dim &&
      head_dim <= kMostHeadDim && head_dim % kColumns == 0;
}

AttentionForward::AttentionForward(
    const AttentionSizes& sizes, float scale, const float* qkv, float* out, float* logsumexp)
    : sizes(sizes), scale(scale), qkv(qkv), out(out), logsumexp(logsumexp),
      keys_turned(panels(sizes.head_dim, sizes.tokens)), values(panels(sizes.tokens, sizes.head_dim)),
      queries(zero_panels(tile_rows(), sizes.head_dim)), weights(zero_panels(tile_rows(), sizes.tokens)) {}

void AttentionForward::run(int64_t first, int64_t last) const {
  for (int64_t head = first; head < last; ++head) kernels().forward(*this, head, head + 1 == last);
}

AttentionBackward::AttentionBackward(
    const AttentionSizes& sizes, float scale, const float* grad, const float* qkv, const float* logsumexp,
    float* grad_qkv)
    : sizes(sizes), scale(scale), grad(grad), qkv(qkv), logsumexp(logsumexp), grad_qkv(grad_qkv),
      row_elements(row_elements_for(sizes.tokens)), block_rows(block_rows_for(sizes.tokens)),
      keys_turned(panels(sizes.head_dim, sizes.tokens)), values_turned(panels(sizes.head_dim, sizes.tokens)),
      keys(panels(sizes.tokens, sizes.head_dim)), queries(zero_panels(block_rows, sizes.head_dim)),
      grads(zero_panels(block_rows, sizes.head_dim)), weights(padded_rows(block_rows, row_elements, sizes.tokens)),
      score_grads(padded_rows(block_rows, row_elements, sizes.tokens)),
      score_grad_tile(zero_panels(tile_rows(), sizes.tokens)) {}

void AttentionBackward::run(int64_t first, int64_t last) const {
  for (int64_t head = first; head < last; ++head) kernels().backward(*this, head, head + 1 == last);
}

}  // namespace puma
