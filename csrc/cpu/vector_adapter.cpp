#include "vector_adapter.h"

#include <algorithm>

#include "ahead.h"
#include "row_products.h"
#include "simd.h"

namespace puma {
namespace {

// Rows collected before they are summed over; measured.
constexpr int64_t kMostCollected = 128;
constexpr int64_t kBetweenFetches = 16;  // of these rows, in a product that sums over them

// How often `multiply` fetches in a whole product.
template <class Tile>
int64_t fetches(int64_t depth, int64_t columns) {
  return (columns + Tile::kColumns - 1) / Tile::kColumns * (depth / kBlock);
}

// The step's rows of a (B*N, width) matrix as a left-hand side of I rows; zeros behind the last.
template <int bytes, int I, class S>
PUMA_INLINE void pack_rows(float* tile, const S* source, const Step& rows, int64_t width) {
  for (int64_t i = 0; i < I; ++i) {
    pack_row<bytes, I>(tile, i, i < rows.count ? source + rows.row[i] * width : nullptr, width);
  }
}

template <class R, class T, int bytes, int I, int J>
PUMA_INLINE void forward_step(const VectorForward<R, T>& a, const Step& rows, const Step* next) {
  using Sums = Tile<float, bytes, I, J>;
  using V = typename Sums::V;
  constexpr int W = Sums::W;
  Sums tile;
  float* const h = a.hidden_tile.get();
  pack_rows<bytes, I>(a.token_tile.get(), a.tokens, rows, a.width);
  ForwardAhead ahead(
      rows, next, a.width, fetches<Sums>(a.width, a.rank), fetches<Sums>(a.rank, a.width), a.tokens, a.residual, a.wide,
      a.narrow, a.out);
  for (int64_t column = 0; column < a.rank; column += J * W) {
    multiply(tile, a.token_tile.get(), I * kBlock, a.down.panel(column), a.width, ahead.for_this_step);
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      const int64_t c = column + j * W;
      if (c >= a.rank) break;
      float* const here = h + c / kBlock * I * kBlock + c % kBlock;
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        const V value = tile.sum[i][j] < 0 ? V{} : tile.sum[i][j];  // NaN stays NaN
        store(here + i * kBlock, rounded<T>(value));
        if (a.hidden != nullptr && i < rows.count) store(a.hidden + (rows.packed + i) * a.rank + c, value);
      }
    }
  }
  for (int64_t column = 0; column < a.width; column += J * W) {
    multiply(tile, h, I * kBlock, a.up.panel(column), a.rank, ahead.for_later);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      if (i >= rows.count) break;
      const int64_t at = rows.row[i] * a.width + column;
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        if (column + j * W >= a.width) break;
        V value = load<V>(a.residual + at + j * W);
        if (a.wide != nullptr) value += load<V>(a.wide + at + j * W);
        if (a.narrow != nullptr) value += load<V>(a.narrow + at + j * W);
        store(a.out + at + j * W, value + rows.factor[i] * tile.sum[i][j]);
      }
    }
  }
}

template <class R, class T, int bytes, int I, int J>
PUMA_INLINE void backward_step(const VectorBackward<R, T>& a, const Step& rows, const Step* next) {
  using Sums = Tile<float, bytes, I, J>;
  using V = typename Sums::V;
  constexpr int W = Sums::W;
  Sums tile;
  pack_rows<bytes, I>(a.grad_tile.get(), a.grad, rows, a.width);
  float* const delta = a.delta_panel.get() + a.collected * kBlock;
  float* const scaled = a.hidden_panel.get() + a.collected * kBlock;
  Ahead for_this_step(a.width, fetches<Sums>(a.width, a.rank));
  Ahead for_later(a.width, fetches<Sums>(a.rank, a.width));
  for_this_step.add(a.up_sum == nullptr ? nullptr : a.tokens, rows.row, rows.count);
  for_this_step.add(a.grad_tokens, rows.row, rows.count);
  if (next != nullptr) {
    for_later.add(a.grad, next->row, next->count);
    for_later.add_neighbours(a.hidden + next->packed * a.rank, next->count, a.rank);
  }
  for_later.add(a.grad_tokens, rows.dropped_row, rows.dropped);
  for (int64_t column = 0; column < a.rank; column += J * W) {
    multiply(tile, a.grad_tile.get(), I * kBlock, a.up.panel(column), a.width, for_this_step);
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      const int64_t c = column + j * W;
      if (c >= a.rank) break;
      const int64_t here = c / kBlock * kMostCollected * kBlock + c % kBlock;
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        V d{}, s{};
        if (i < rows.count) {
          const V h = load<V>(a.hidden + (rows.packed + i) * a.rank + c);
          d = h > 0 ? rows.factor[i] * tile.sum[i][j] : d;
          s = rows.factor[i] * h;
        }
        store(delta + here + i * kBlock, d);
        store(scaled + here + i * kBlock, s);
      }
    }
  }
  if (a.grad_tokens == nullptr) return;
  for (int64_t column = 0; column < a.width; column += J * W) {
    multiply(tile, delta, kMostCollected * kBlock, a.down.panel(column), a.rank, for_later);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      if (i >= rows.count) break;
      T* const out = a.grad_tokens + rows.row[i] * a.width + column;
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        if (column + j * W >= a.width) break;
        store(out + j * W, tile.sum[i][j]);
      }
    }
  }
}

// sum += narrow (rows, rank) transposed @ source (rows, width), the rows that were collected.
template <class R, class T, int bytes, int I, int J, class S>
PUMA_INLINE void add_product(const VectorBackward<R, T>& a, float* sum, const float* narrow, const S* source) {
  using Sums = Tile<float, bytes, I, J>;
  using V = typename Sums::V;
  constexpr int W = Sums::W;
  float* const strip = a.wide_strip.get();
  const int64_t calls = (a.rank + I - 1) / I * ((a.collected + kBetweenFetches - 1) / kBetweenFetches);
  for (int64_t column = 0; column < a.width; column += J * W) {
    for (int64_t k = 0; k < a.collected; ++k) {
      const S* const in = source + a.collected_rows[k] * a.width + column;
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        store(strip + (k * J + j) * W, column + j * W < a.width ? load<V>(in + j * W) : V{});
      }
    }
    StripAhead ahead(source, a.collected_rows.get(), a.collected, a.width, column + J * W, J * W, calls);
    for (int64_t r = 0; r < a.rank; r += I, sum += I * J * W) {
      Sums tile;
      tile.clear();  // and is added as a whole: one long chain of rows would round much more
      const float* left = narrow + r / kBlock * kMostCollected * kBlock + r % kBlock;
      const float* right = strip;
      for (int64_t k = 0; k < a.collected;) {
        ahead.fetch();
        const int64_t end = std::min(k + kBetweenFetches, a.collected);
        _Pragma("GCC unroll 4") for (; k < end; ++k, left += kBlock, right += J * W) tile.add(left, 1, right);
      }
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        PUMA_UNROLL for (int j = 0; j < J; ++j) *reinterpret_cast<V*>(sum + (i * J + j) * W) += tile.sum[i][j];
      }
    }
  }
}

// The steps for one instruction set.
template <class R, class T>
struct Kernels {
  void (*forward)(const VectorForward<R, T>& adapter, const Step& rows, const Step* next);
  void (*backward)(const VectorBackward<R, T>& adapter, const Step& rows, const Step* next);
  // Both products that sum over rows.
  void (*add_products)(const VectorBackward<R, T>& adapter);
};

// In products that sum over rows: as many as the registers hold.
template <int bytes>
constexpr int kSumRows = bytes == 64 ? 8 : 4;
constexpr int kSumVectors = 3;

#define PUMA_KERNELS(NAME, BYTES, ...)                                                                          \
  static_assert(kTileRows<BYTES> <= kMostStepRows && kTileRows<BYTES> <= kMostCollected);                       \
  static_assert(kBlock % kSumRows<BYTES> == 0 && kBlock % (BYTES / 4) == 0);                                    \
  template <class R, class T>                                                                                   \
  __VA_ARGS__ void forward_##NAME(const VectorForward<R, T>& a, const Step& rows, const Step* next) {           \
    forward_step<R, T, BYTES, kTileRows<BYTES>, kTileVectors>(a, rows, next);                                   \
  }                                                                                                             \
  template <class R, class T>                                                                                   \
  __VA_ARGS__ void backward_##NAME(const VectorBackward<R, T>& a, const Step& rows, const Step* next) {         \
    backward_step<R, T, BYTES, kTileRows<BYTES>, kTileVectors>(a, rows, next);                                  \
  }                                                                                                             \
  template <class R, class T>                                                                                   \
  __VA_ARGS__ void add_products_##NAME(const VectorBackward<R, T>& a) {                                         \
    add_product<R, T, BYTES, kSumRows<BYTES>, kSumVectors>(a, a.down_sum, a.delta_panel.get(), a.tokens);       \
    add_product<R, T, BYTES, kSumRows<BYTES>, kSumVectors>(a, a.up_sum, a.hidden_panel.get(), a.grad);          \
  }                                                                                                             \
  template <class R, class T>                                                                                   \
  constexpr Kernels<R, T> NAME{forward_##NAME<R, T>, backward_##NAME<R, T>, add_products_##NAME<R, T>};

#if defined(__x86_64__)
PUMA_KERNELS(avx2, 32, PUMA_AVX2)
PUMA_KERNELS(avx512, 64, PUMA_AVX512)
#endif

// Both only where vectors_serve.
template <class R, class T>
Kernels<R, T> kernels() {
#if defined(__x86_64__)
  return choose(Kernels<R, T>{}, avx2<R, T>, avx512<R, T>);
#else
  return {};
#endif
}

// Columns of the strips of those sums.
int64_t strip_columns() { return tile_columns() / kTileVectors * kSumVectors; }

}  // namespace

bool vectors_serve(int64_t width, int64_t rank) {
  return instruction_set() >= InstructionSet::avx2 && width % kBlock == 0 && rank % kBlock == 0;
}

template <class R, class T>
int64_t VectorForward<R, T>::rows() {
  return tile_rows();
}

template <class R, class T>
VectorForward<R, T>::VectorForward(
    const Operand& down, const Operand& up, const T* tokens, const R* residual, const R* wide, const T* narrow, R* out,
    T* hidden)
    : down(down), up(up), tokens(tokens), residual(residual), wide(wide), narrow(narrow), out(out), hidden(hidden),
      width(down.depth()), rank(up.depth()), token_tile(lines<float>(rows() * width)),
      hidden_tile(lines<float>(rows() * rank)) {}

template <class R, class T>
void VectorForward<R, T>::step(const Step& step, const Step* next) {
  kernels<R, T>().forward(*this, step, next);
}

template <class R, class T>
int64_t VectorBackward<R, T>::rows() {
  return tile_rows();
}

template <class R, class T>
int64_t VectorBackward<R, T>::strip(int64_t /*width*/) {
  return strip_columns();
}

template <class R, class T>
VectorBackward<R, T>::VectorBackward(
    const Operand& down, const Operand& up, const R* grad, const T* tokens, const T* hidden, T* grad_tokens,
    float* down_sum, float* up_sum)
    : down(down), up(up), grad(grad), tokens(tokens), hidden(hidden), grad_tokens(grad_tokens), down_sum(down_sum),
      up_sum(up_sum), width(up.depth()), rank(down.depth()), grad_tile(lines<float>(rows() * width)),
      delta_panel(lines<float>(kMostCollected * rank)),
      hidden_panel(lines<float>(kMostCollected * rank)),
      wide_strip(lines<float>(kMostCollected * strip_columns())),
      collected_rows(lines<int64_t>(kMostCollected)) {}

template <class R, class T>
void VectorBackward<R, T>::step(const Step& step, const Step* next) {
  kernels<R, T>().backward(*this, step, next);
  if (up_sum == nullptr) return;
  std::copy(step.row, step.row + step.count, collected_rows.get() + collected);
  collected += step.count;
  if (collected + rows() > kMostCollected) finish();
}

template <class R, class T>
void VectorBackward<R, T>::finish() {
  if (collected == 0) return;
  kernels<R, T>().add_products(*this);
  collected = 0;
}

#define PUMA_ADAPTER(R, T)             \
  template struct VectorForward<R, T>; \
  template struct VectorBackward<R, T>;

PUMA_ADAPTER(float, float)
PUMA_ADAPTER(bf16, bf16)
PUMA_ADAPTER(float, bf16)
PUMA_ADAPTER(fp16, fp16)
PUMA_ADAPTER(float, fp16)

}  // namespace puma
