#include "vector_adapter.h"

#include <algorithm>

#include "ahead.h"
#include "simd.h"
#include "tile.h"

namespace puma {
namespace {

// Left-hand sides lie in blocks of 16 columns, one row's 16 behind the other's: a tile finds all its rows at fixed
// distances from one address.
constexpr int64_t kBlock = 16;
// Rows collected before they are summed over; measured.
constexpr int64_t kMostCollected = 128;

int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// tile = left @ a panel of `depth` rows; left's blocks are `next` elements apart.
template <int bytes, int I, int J>
PUMA_INLINE void multiply(
    Tile<float, bytes, I, J>& tile, const float* left, int64_t next, const float* panel, int64_t depth, Ahead& ahead) {
  tile.clear();
  for (int64_t block = 0; block < depth; block += kBlock, left += next) {
    ahead.fetch();
    _Pragma("GCC unroll 4") for (int k = 0; k < kBlock; ++k, panel += tile.kColumns) tile.add(left + k, kBlock, panel);
  }
}

// How often `multiply` fetches in a whole product.
template <class Tile>
int64_t fetches(int64_t depth, int64_t columns) {
  return (columns + Tile::kColumns - 1) / Tile::kColumns * (depth / kBlock);
}

template <int bytes>
PUMA_INLINE void copy(float* out, const float* in) {
  using V = typename Vector<float, bytes>::type;
  PUMA_UNROLL for (size_t i = 0; i < kBlock * sizeof(float) / bytes; ++i) {
    reinterpret_cast<V*>(out)[i] = reinterpret_cast<const V*>(in)[i];
  }
}

// The step's rows of a (B*N, width) matrix as a left-hand side of I rows; zeros behind the last.
template <int bytes, int I>
PUMA_INLINE void pack_rows(float* tile, const float* source, const Step& rows, int64_t width) {
  using V = typename Vector<float, bytes>::type;
  for (int64_t i = 0; i < I; ++i) {
    float* out = tile + i * kBlock;
    if (i < rows.count) {
      const float* const in = source + rows.row[i] * width;
      for (int64_t c = 0; c < width; c += kBlock, out += I * kBlock) copy<bytes>(out, in + c);
    } else {
      for (int64_t c = 0; c < width; c += kBlock, out += I * kBlock) {
        PUMA_UNROLL for (size_t x = 0; x < kBlock * sizeof(float) / bytes; ++x) reinterpret_cast<V*>(out)[x] = V{};
      }
    }
  }
}

template <int bytes, int I, int J>
PUMA_INLINE void forward_step(const VectorForward& a, const Step& rows, const Step* next) {
  using T = Tile<float, bytes, I, J>;
  using V = typename T::V;
  constexpr int W = T::W;
  T tile;
  float* const h = a.hidden_tile.get();
  pack_rows<bytes, I>(a.token_tile.get(), a.tokens, rows, a.width);
  Ahead for_this_step(a.width, fetches<T>(a.width, a.rank)), for_later(a.width, fetches<T>(a.rank, a.width));
  for (const float* const tensor : {a.residual, a.branch, static_cast<const float*>(a.out)}) {
    for_this_step.add(tensor, rows.row, rows.count);
    for_later.add(tensor, rows.dropped_row, rows.dropped);
  }
  if (next != nullptr) for_later.add(a.tokens, next->row, next->count);
  for (int64_t column = 0; column < a.rank; column += J * W) {
    multiply(tile, a.token_tile.get(), I * kBlock, a.down.panel(column), a.width, for_this_step);
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      const int64_t c = column + j * W;
      if (c >= a.rank) break;
      float* const here = h + c / kBlock * I * kBlock + c % kBlock;
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        const V value = tile.sum[i][j] < 0 ? V{} : tile.sum[i][j];  // NaN stays NaN
        *reinterpret_cast<V*>(here + i * kBlock) = value;
        if (a.hidden != nullptr && i < rows.count) {
          *reinterpret_cast<V*>(a.hidden + (rows.packed + i) * a.rank + c) = value;
        }
      }
    }
  }
  for (int64_t column = 0; column < a.width; column += J * W) {
    multiply(tile, h, I * kBlock, a.up.panel(column), a.rank, for_later);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      if (i >= rows.count) break;
      const int64_t at = rows.row[i] * a.width + column;
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        if (column + j * W >= a.width) break;
        V value = *reinterpret_cast<const V*>(a.residual + at + j * W);
        if (a.branch != nullptr) value += *reinterpret_cast<const V*>(a.branch + at + j * W);
        *reinterpret_cast<V*>(a.out + at + j * W) = value + rows.factor[i] * tile.sum[i][j];
      }
    }
  }
}

template <int bytes, int I, int J>
PUMA_INLINE void backward_step(const VectorBackward& a, const Step& rows, const Step* next) {
  using T = Tile<float, bytes, I, J>;
  using V = typename T::V;
  constexpr int W = T::W;
  T tile;
  pack_rows<bytes, I>(a.grad_tile.get(), a.grad, rows, a.width);
  float* const delta = a.delta_panel.get() + a.collected * kBlock;
  float* const scaled = a.hidden_panel.get() + a.collected * kBlock;
  Ahead for_this_step(a.width, fetches<T>(a.width, a.rank)), for_later(a.width, fetches<T>(a.rank, a.width));
  for_this_step.add(a.up_sum == nullptr ? nullptr : a.tokens, rows.row, rows.count);
  for_this_step.add(a.grad_tokens, rows.row, rows.count);
  if (next != nullptr) for_later.add(a.grad, next->row, next->count);
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
          const V h = *reinterpret_cast<const V*>(a.hidden + (rows.packed + i) * a.rank + c);
          d = h > 0 ? rows.factor[i] * tile.sum[i][j] : d;
          s = rows.factor[i] * h;
        }
        *reinterpret_cast<V*>(delta + here + i * kBlock) = d;
        *reinterpret_cast<V*>(scaled + here + i * kBlock) = s;
      }
    }
  }
  if (a.grad_tokens == nullptr) return;
  for (int64_t column = 0; column < a.width; column += J * W) {
    multiply(tile, delta, kMostCollected * kBlock, a.down.panel(column), a.rank, for_later);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      if (i >= rows.count) break;
      float* const out = a.grad_tokens + rows.row[i] * a.width + column;
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        if (column + j * W >= a.width) break;
        *reinterpret_cast<V*>(out + j * W) = tile.sum[i][j];
      }
    }
  }
}

// sum += narrow (rows, rank) transposed @ source (rows, width), the rows that were collected.
template <int bytes, int I, int J>
PUMA_INLINE void add_product(const VectorBackward& a, float* sum, const float* narrow, const float* source) {
  using T = Tile<float, bytes, I, J>;
  using V = typename T::V;
  constexpr int W = T::W;
  float* const strip = a.wide_strip.get();
  for (int64_t column = 0; column < a.width; column += J * W) {
    for (int64_t k = 0; k < a.collected; ++k) {
      const float* const in = source + a.collected_rows[k] * a.width + column;
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        *reinterpret_cast<V*>(strip + (k * J + j) * W) =
            column + j * W < a.width ? *reinterpret_cast<const V*>(in + j * W) : V{};
      }
    }
    for (int64_t r = 0; r < a.rank; r += I, sum += I * J * W) {
      T tile;
      tile.clear();  // and is added as a whole: one long chain of rows would round much more
      const float* left = narrow + r / kBlock * kMostCollected * kBlock + r % kBlock;
      const float* right = strip;
      _Pragma("GCC unroll 4") for (int64_t k = 0; k < a.collected; ++k, left += kBlock, right += J * W) {
        tile.add(left, 1, right);
      }
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        PUMA_UNROLL for (int j = 0; j < J; ++j) *reinterpret_cast<V*>(sum + (i * J + j) * W) += tile.sum[i][j];
      }
    }
  }
}

// The steps for one instruction set, and the shape of its tiles.
struct Kernels {
  int64_t rows, panel, strip;
  void (*forward)(const VectorForward& adapter, const Step& rows, const Step* next);
  void (*backward)(const VectorBackward& adapter, const Step& rows, const Step* next);
  void (*add_product)(const VectorBackward& adapter, float* sum, const float* narrow, const float* source);
};

// I rows by J vectors in products along rows, K by L in products that sum over rows: as many as the registers hold.
#define PUMA_KERNELS(NAME, BYTES, I, J, K, L, ...)                                                              \
  static_assert(I <= kMostStepRows && I <= kMostCollected && kBlock % K == 0 && kBlock % (BYTES / 4) == 0);     \
  __VA_ARGS__ void forward_##NAME(const VectorForward& adapter, const Step& rows, const Step* next) {           \
    forward_step<BYTES, I, J>(adapter, rows, next);                                                             \
  }                                                                                                             \
  __VA_ARGS__ void backward_##NAME(const VectorBackward& adapter, const Step& rows, const Step* next) {         \
    backward_step<BYTES, I, J>(adapter, rows, next);                                                            \
  }                                                                                                             \
  __VA_ARGS__ void add_product_##NAME(                                                                          \
      const VectorBackward& adapter, float* sum, const float* narrow, const float* source) {                    \
    add_product<BYTES, K, L>(adapter, sum, narrow, source);                                                     \
  }                                                                                                             \
  constexpr Kernels NAME{I, J * BYTES / 4, L * BYTES / 4, forward_##NAME, backward_##NAME, add_product_##NAME};

#if defined(__x86_64__)
PUMA_KERNELS(avx2, 32, 6, 2, 4, 3, PUMA_AVX2)
PUMA_KERNELS(avx512, 64, 14, 2, 8, 3, PUMA_AVX512)
#endif

// Only where vectors_serve.
const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& chosen = instruction_set() >= InstructionSet::avx512 ? avx512 : avx2;
  return chosen;
#else
  static const Kernels none{};
  return none;
#endif
}

// out (16, 16) = the transpose of in.
void turn_block(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
  for (int64_t i = 0; i < kBlock; ++i) {
    for (int64_t j = 0; j < kBlock; ++j) out[i * out_stride + j] = in[j * in_stride + i];
  }
}

}  // namespace

bool vectors_serve(int64_t width, int64_t rank) {
  return instruction_set() >= InstructionSet::avx2 && width % kBlock == 0 && rank % kBlock == 0;
}

VectorOperand::VectorOperand(int64_t depth, int64_t columns)
    : depth_(depth), panels_(lines<float>(rounded_up(columns, kernels().panel) * depth)) {}

VectorOperand VectorOperand::of(const float* matrix, int64_t depth, int64_t columns) {
  VectorOperand operand(depth, columns);
  const int64_t panel = kernels().panel;
  float* out = operand.panels_.get();
  for (int64_t column = 0; column < columns; column += panel) {
    const int64_t some = std::min(panel, columns - column);
    for (int64_t k = 0; k < depth; ++k, out += panel) {
      const float* const in = matrix + k * columns + column;
      std::fill(std::copy(in, in + some, out), out + panel, 0.0F);
    }
  }
  return operand;
}

VectorOperand VectorOperand::of_transposed(const float* matrix, int64_t depth, int64_t columns) {
  VectorOperand operand(depth, columns);
  const int64_t panel = kernels().panel;
  float* out = operand.panels_.get();
  for (int64_t column = 0; column < columns; column += panel, out += panel * depth) {
    const int64_t some = std::min(panel, columns - column);
    if (some < panel) std::fill_n(out, panel * depth, 0.0F);
    for (int64_t c = 0; c < some; c += kBlock) {
      for (int64_t k = 0; k < depth; k += kBlock) {
        turn_block(out + k * panel + c, panel, matrix + (column + c) * depth + k, depth);
      }
    }
  }
  return operand;
}

int64_t VectorForward::rows() { return kernels().rows; }

VectorForward::VectorForward(
    const VectorOperand& down, const VectorOperand& up, const float* tokens, const float* residual,
    const float* branch, float* out, float* hidden)
    : down(down), up(up), tokens(tokens), residual(residual), branch(branch), out(out), hidden(hidden),
      width(down.depth()), rank(up.depth()), token_tile(lines<float>(rows() * width)),
      hidden_tile(lines<float>(rows() * rank)) {}

void VectorForward::step(const Step& step, const Step* next) { kernels().forward(*this, step, next); }

int64_t VectorBackward::rows() { return kernels().rows; }

int64_t VectorBackward::strip(int64_t /*width*/) { return kernels().strip; }

VectorBackward::VectorBackward(
    const VectorOperand& down, const VectorOperand& up, const float* grad, const float* tokens, const float* hidden,
    float* grad_tokens, float* down_sum, float* up_sum)
    : down(down), up(up), grad(grad), tokens(tokens), hidden(hidden), grad_tokens(grad_tokens), down_sum(down_sum),
      up_sum(up_sum), width(up.depth()), rank(down.depth()), grad_tile(lines<float>(rows() * width)),
      delta_panel(lines<float>(kMostCollected * rank)), hidden_panel(lines<float>(kMostCollected * rank)),
      wide_strip(lines<float>(kMostCollected * kernels().strip)), collected_rows(lines<int64_t>(kMostCollected)) {}

void VectorBackward::step(const Step& step, const Step* next) {
  kernels().backward(*this, step, next);
  if (up_sum == nullptr) return;
  std::copy(step.row, step.row + step.count, collected_rows.get() + collected);
  collected += step.count;
  if (collected + rows() > kMostCollected) finish();
}

void VectorBackward::finish() {
  if (collected == 0) return;
  kernels().add_product(*this, down_sum, delta_panel.get(), tokens);
  kernels().add_product(*this, up_sum, hidden_panel.get(), grad);
  collected = 0;
}

}  // namespace puma
