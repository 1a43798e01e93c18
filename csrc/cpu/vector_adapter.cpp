#include "vector_adapter.h"

#include <algorithm>

#include "ahead.h"
#include "simd.h"

namespace puma {
namespace {

// Left-hand sides lie in blocks of 16 columns, one row's 16 behind the other's: a tile finds all its rows at fixed
// distances from one address.
constexpr int64_t kBlock = 16;
// Rows collected before they are summed over; measured.
constexpr int64_t kMostCollected = 128;

int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// I rows of a product and J vectors of its columns.
template <int bytes, int I, int J>
struct Tile {
  using V = typename Vector<float, bytes>::type;
  static constexpr int W = bytes / static_cast<int>(sizeof(float));
  V sum[I][J];

  PUMA_INLINE void clear() {
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = V{};
    }
  }

  // += left (I, 1) @ right (1, J vectors); left's elements are `stride` apart.
  PUMA_INLINE void add(const float* left, int64_t stride, const float* right) {
    V r[J];
    PUMA_UNROLL for (int j = 0; j < J; ++j) r[j] = *reinterpret_cast<const V*>(right + j * W);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      const float l = left[i * stride];
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] += l * r[j];
    }
  }

  // = left @ a panel of `depth` rows; left's blocks are `next` elements apart.
  PUMA_INLINE void multiply(const float* left, int64_t next, const float* panel, int64_t depth, Ahead& ahead) {
    clear();
    for (int64_t block = 0; block < depth; block += kBlock, left += next) {
      ahead.fetch();
      _Pragma("GCC unroll 4") for (int k = 0; k < kBlock; ++k, panel += J * W) add(left + k, kBlock, panel);
    }
  }
};

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
  using T = Tile<bytes, I, J>;
  using V = typename T::V;
  constexpr int W = T::W;
  T tile;
  float* const h = a.hidden_tile.get();
  pack_rows<bytes, I>(a.token_tile.get(), a.tokens, rows, a.width);
  Ahead addends(a.width), others(a.width);
  for (const float* const tensor : {a.residual, a.branch, static_cast<const float*>(a.out)}) {
    addends.add(tensor, rows.row, rows.count);
    others.add(tensor, rows.dropped_row, rows.dropped);
  }
  if (next != nullptr) others.add(a.tokens, next->row, next->count);
  for (int64_t column = 0; column < a.rank; column += J * W) {
    tile.multiply(a.token_tile.get(), I * kBlock, a.down.panel(column), a.width, addends);
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
    tile.multiply(h, I * kBlock, a.up.panel(column), a.rank, others);
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
  using T = Tile<bytes, I, J>;
  using V = typename T::V;
  constexpr int W = T::W;
  T tile;
  pack_rows<bytes, I>(a.grad_tile.get(), a.grad, rows, a.width);
  float* const delta = a.delta_panel.get() + a.collected * kBlock;
  float* const scaled = a.hidden_panel.get() + a.collected * kBlock;
  Ahead others(a.width), grad(a.width);
  others.add(a.up_sum == nullptr ? nullptr : a.tokens, rows.row, rows.count);
  others.add(a.grad_tokens, rows.row, rows.count);
  if (next != nullptr) grad.add(a.grad, next->row, next->count);
  grad.add(a.grad_tokens, rows.dropped_row, rows.dropped);
  for (int64_t column = 0; column < a.rank; column += J * W) {
    tile.multiply(a.grad_tile.get(), I * kBlock, a.up.panel(column), a.width, others);
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
    tile.multiply(delta, kMostCollected * kBlock, a.down.panel(column), a.rank, grad);
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
  using T = Tile<bytes, I, J>;
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
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        PUMA_UNROLL for (int j = 0; j < J; ++j) tile.sum[i][j] = *reinterpret_cast<const V*>(sum + (i * J + j) * W);
      }
      const float* left = narrow + r / kBlock * kMostCollected * kBlock + r % kBlock;
      const float* right = strip;
      _Pragma("GCC unroll 4") for (int64_t k = 0; k < a.collected; ++k, left += kBlock, right += J * W) {
        tile.add(left, 1, right);
      }
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        PUMA_UNROLL for (int j = 0; j < J; ++j) *reinterpret_cast<V*>(sum + (i * J + j) * W) = tile.sum[i][j];
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

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& chosen = instruction_set() >= InstructionSet::avx512 ? avx512 : avx2;
  return chosen;
#else
  static const Kernels none{};
  return none;
#endif
}

}  // namespace

bool vectors_serve(int64_t width, int64_t rank) {
  return instruction_set() >= InstructionSet::avx2 && width % kBlock == 0 && rank % kBlock == 0;
}

VectorOperand::VectorOperand(int64_t depth, int64_t columns)
    : depth_(depth), columns_(columns), panels_(lines<float>(rounded_up(columns, kernels().panel) * depth)) {}

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
  for (int64_t column = 0; column < columns; column += panel) {
    const int64_t some = std::min(panel, columns - column);
    for (int64_t k = 0; k < depth; ++k, out += panel) {
      for (int64_t c = 0; c < some; ++c) out[c] = matrix[(column + c) * depth + k];
      std::fill(out + some, out + panel, 0.0F);
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
