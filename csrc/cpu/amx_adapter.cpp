#include "amx_adapter.h"

#include <cstring>

#include "ahead.h"
#include "bf16_vectors.h"

#if PUMA_HAS_AMX

#define PUMA_AMX_INLINE inline __attribute__((always_inline)) PUMA_AMX

namespace puma {
namespace {

constexpr int64_t kPanelRows = 256;  // measured: 128 and 512 are no faster
constexpr int64_t kTile = 512;  // elements of a tile of half types; 16 rows of 32, or pairs of 16

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr TileConfiguration kConfiguration;

PUMA_AMX void configure() {
  const void* configuration = &kConfiguration;
  asm volatile("" : "+r"(configuration) : : "memory");  // the intrinsic does not say that it reads all 64 bytes
  _tile_loadconfig(configuration);
}
PUMA_AMX void release() { _tile_release(); }

// The intrinsics of tiles do not tell the compiler which memory they use.
PUMA_AMX_INLINE void memory_barrier() { asm volatile("" ::: "memory"); }

// Two rows, 16 columns, interleaved.
PUMA_AMX_INLINE void interleave_pair(bf16* out, const bf16* in, int64_t stride) {
  _mm512_storeu_si512(out, interleaved(in, in + stride));
}

// A tile: 32 rows, 16 columns.
PUMA_AMX_INLINE void interleave(bf16* tile, const bf16* in, int64_t stride) {
  for (int64_t k = 0; k < 16; ++k) interleave_pair(tile + 32 * k, in + 2 * k * stride, stride);
}

// Tiles 0 to 3, 32 rows and columns, += left @ right. The left-hand side's tiles are `next` elements apart towards its
// columns, `below` towards its rows, and their own rows `stride` bytes; the right one's begin in `column`.
template <class F>
PUMA_AMX_INLINE void multiply(
    const bf16* left, int64_t stride, int64_t next, int64_t below, const AmxOperand& operand, int64_t column,
    int64_t steps, const F& meanwhile) {
  const bf16* const right = operand.tile(0, column);
  const int64_t right_below = operand.below(), right_next = operand.next();
  for (int64_t k = 0; k < steps; ++k) {
    _tile_loadd(4, left + k * next, stride);
    _tile_loadd(6, right + k * right_below, 64);
    _tile_loadd(7, right + k * right_below + right_next, 64);
    _tile_loadd(5, left + k * next + below, stride);
    meanwhile();
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// out (32, 32), rows of `stride` elements, = left (32, depth) @ 32 columns of right.
PUMA_AMX_INLINE void product(
    float* out, int64_t stride, const bf16* left, const AmxOperand& right, int64_t column, Ahead& ahead) {
  const int64_t depth = right.depth(), row_bytes = 4 * stride;
  memory_barrier();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  multiply(left, 2 * depth, 32, 16 * depth, right, column, depth / 32, [&]() __attribute__((always_inline)) {
    ahead.fetch();
  });
  _tile_stored(0, out, row_bytes);
  _tile_stored(1, out + 16, row_bytes);
  _tile_stored(2, out + 16 * stride, row_bytes);
  _tile_stored(3, out + 16 * stride + 16, row_bytes);
  memory_barrier();
}

// How often `product` fetches ahead for a whole product of that depth.
int64_t fetches(int64_t depth, int64_t columns) { return columns / 32 * (depth / 32); }

// sum (rows, columns) += left @ right over the first `depth` rows of panels; left's tiles hold its transpose.
PUMA_AMX void add_product(
    float* sum, int64_t rows, int64_t columns, const AmxOperand& left, const AmxOperand& right, int64_t depth) {
  const int64_t row_bytes = 4 * columns;
  memory_barrier();
  for (int64_t column = 0; column < columns; column += 32) {
    for (int64_t row = 0; row < rows; row += 32) {
      float* const upper = sum + row * columns + column;
      float* const lower = upper + 16 * columns;
      _tile_loadd(0, upper, row_bytes);
      _tile_loadd(1, upper + 16, row_bytes);
      _tile_loadd(2, lower, row_bytes);
      _tile_loadd(3, lower + 16, row_bytes);
      multiply(left.tile(0, row), 64, left.below(), left.next(), right, column, depth / 32, [] {});
      _tile_stored(0, upper, row_bytes);
      _tile_stored(1, upper + 16, row_bytes);
      _tile_stored(2, lower, row_bytes);
      _tile_stored(3, lower + 16, row_bytes);
    }
  }
  memory_barrier();
}

// The rows of a (B*N, width) matrix: where they are if they are neighbours there, else in `buffer`, which is filled up
// with zeros.
const bf16* gathered(const bf16* source, const Step& rows, bf16* buffer, int64_t width) {
  if (rows.count == kAmxRows && rows.row[kAmxRows - 1] - rows.row[0] == kAmxRows - 1) {
    return source + rows.row[0] * width;
  }
  const size_t bytes = static_cast<size_t>(width) * sizeof(bf16);
  for (int64_t i = 0; i < rows.count; ++i) {
    std::memcpy(static_cast<void*>(buffer + i * width), source + rows.row[i] * width, bytes);
  }
  std::memset(static_cast<void*>(buffer + rows.count * width), 0, static_cast<size_t>(kAmxRows - rows.count) * bytes);
  return buffer;
}

const bf16* gathered(const float* source, const Step& rows, bf16* buffer, int64_t width) {
  for (int64_t i = 0; i < rows.count; ++i) convert(buffer + i * width, source + rows.row[i] * width, width);
  std::memset(
      static_cast<void*>(buffer + rows.count * width), 0,
      static_cast<size_t>((kAmxRows - rows.count) * width) * sizeof(bf16));
  return buffer;
}

PUMA_AMX void fill(const AmxOperand& operand, const bf16* matrix, int64_t depth, int64_t columns) {
  for (int64_t column = 0; column < columns; column += 16) {
    for (int64_t row = 0; row < depth; row += 32) {
      interleave(operand.tile(row, column), matrix + row * columns + column, columns);
    }
  }
}

// Pairs lie side by side in the transpose's transpose.
PUMA_AMX void fill_transposed(const AmxOperand& operand, const bf16* matrix, int64_t depth, int64_t columns) {
  for (int64_t column = 0; column < columns; column += 16) {
    for (int64_t row = 0; row < depth; row += 32) {
      transpose_pairs(operand.tile(row, column), 32, matrix + column * depth + row, depth);
    }
  }
}

// 32 rows of a panel, from row `row` on, as they are; along the rows, so that memory is read in streams.
PUMA_AMX void fill_rows(const AmxOperand& panel, int64_t row, const bf16* in, int64_t columns) {
  for (int64_t k = 0; k < 16; ++k, in += 2 * columns) {
    bf16* out = panel.tile(row, 0) + 32 * k;
    for (int64_t column = 0; column < columns; column += 16, out += kTile) {
      interleave_pair(out, in + column, columns);
    }
  }
}

// And as columns, for a left-hand side.
PUMA_AMX void fill_columns(const AmxOperand& panel, int64_t row, const bf16* in, int64_t columns) {
  alignas(64) bf16 pairs[kTile];
  for (int64_t column = 0; column < columns; column += 16) {
    interleave(pairs, in + column, columns);
    transpose_pairs(panel.tile(row, column), 32, pairs, 32);
  }
}

}  // namespace

bool amx_serves(int64_t width, int64_t rank) {
  return instruction_set() == InstructionSet::amx && width % 32 == 0 && rank % 32 == 0;
}

AmxOperand::AmxOperand(int64_t depth, int64_t columns, int64_t below, int64_t next)
    : depth_(depth), below_(below), next_(next), tiles_(lines<bf16>(depth * columns)) {}

// One panel of rows behind the other.
AmxOperand AmxOperand::panel(int64_t depth, int64_t columns) {
  return AmxOperand(depth, columns, columns / 16 * kTile, kTile);
}

AmxOperand AmxOperand::of(const bf16* matrix, int64_t depth, int64_t columns) {
  AmxOperand operand(depth, columns, kTile, depth / 32 * kTile);
  fill(operand, matrix, depth, columns);
  return operand;
}

AmxOperand AmxOperand::of_transposed(const bf16* matrix, int64_t depth, int64_t columns) {
  AmxOperand operand(depth, columns, kTile, depth / 32 * kTile);
  fill_transposed(operand, matrix, depth, columns);
  return operand;
}

AmxUnit::AmxUnit() { configure(); }

AmxUnit::~AmxUnit() { release(); }

template <class R>
PUMA_AMX void AmxForward<R>::step(const Step& rows, const Step* next) {
  alignas(64) float sums[kAmxRows * 32];
  const bf16* const x = gathered(tokens_, rows, token_rows_.get(), width_);
  const bool in_place = hidden_ != nullptr && rows.count == kAmxRows;
  bf16* const saved = hidden_ + (hidden_ == nullptr ? 0 : rows.packed * rank_);
  bf16* const h = in_place ? saved : hidden_rows_.get();
  const __m512 zero = _mm512_setzero_ps();
  ForwardAhead ahead(
      rows, next, width_, fetches(width_, rank_), fetches(rank_, width_), tokens_, residual_, wide_, narrow_, out_);
  for (int64_t column = 0; column < rank_; column += 32) {
    product(sums, 32, x, down_, column, ahead.for_this_step);
    for (int64_t i = 0; i < kAmxRows; ++i) {  // zero first: of NaN and another the second is taken
      const __m512 first = _mm512_max_ps(zero, load(sums + 32 * i));
      store_pair(h + i * rank_ + column, first, _mm512_max_ps(zero, load(sums + 32 * i + 16)));
    }
  }
  if (hidden_ != nullptr && !in_place) {
    std::memcpy(static_cast<void*>(saved), h, static_cast<size_t>(rows.count * rank_) * sizeof(bf16));
  }
  for (int64_t column = 0; column < width_; column += 32) {
    product(product_.get() + column, width_, h, up_, column, ahead.for_later);
  }
  add_to_residual(rows);
}

// out = residual + branch + factor * product, row by row: streams that the processor sees coming.
template <class R>
PUMA_AMX void AmxForward<R>::add_to_residual(const Step& rows) const {
  for (int64_t i = 0; i < rows.count; ++i) {
    const __m512 factor = _mm512_set1_ps(rows.factor[i]);
    const int64_t place = rows.row[i] * width_;
    const float* const product = product_.get() + i * width_;
    for (int64_t c = 0; c < width_; c += 32) {
      __m512 value[2];
      PUMA_UNROLL for (int half = 0; half < 2; ++half) {
        const int64_t at = c + 16 * half;
        value[half] = load(residual_ + place + at);
        if (wide_ != nullptr) value[half] = _mm512_add_ps(value[half], load(wide_ + place + at));
        if (narrow_ != nullptr) value[half] = _mm512_add_ps(value[half], load(narrow_ + place + at));
        value[half] = _mm512_fmadd_ps(factor, load(product + at), value[half]);
      }
      store_exactly(out_ + place + c, value[0], value[1]);
    }
  }
}

template <class R>
AmxBackward<R>::AmxBackward(
    const AmxOperand& down, const AmxOperand& up, const R* grad, const bf16* tokens, const bf16* hidden,
    bf16* grad_tokens, float* down_sum, float* up_sum)
    : down_(down), up_(up), grad_(grad), tokens_(tokens), hidden_(hidden), grad_tokens_(grad_tokens),
      down_sum_(down_sum), up_sum_(up_sum), width_(up.depth()), rank_(down.depth()),
      token_rows_(lines<bf16>(kAmxRows * width_)), grad_rows_(lines<bf16>(kAmxRows * width_)),
      delta_(lines<bf16>(kAmxRows * rank_)), scaled_hidden_(lines<bf16>(kAmxRows * rank_)),
      product_(lines<float>(kAmxRows * width_)),
      tokens_panel_(AmxOperand::panel(kPanelRows, width_)), grad_panel_(AmxOperand::panel(kPanelRows, width_)),
      delta_panel_(AmxOperand::panel(kPanelRows, rank_)), hidden_panel_(AmxOperand::panel(kPanelRows, rank_)) {}

template <class R>
PUMA_AMX void AmxBackward<R>::step(const Step& rows, const Step* next) {
  const bool weights = up_sum_ != nullptr;
  const bf16* const grad = gathered(grad_, rows, grad_rows_.get(), width_);
  if (weights) fill_rows(grad_panel_, collected_, grad, width_);  // first, for it reads along the rows
  make_delta(rows, grad);
  if (grad_tokens_ != nullptr) {
    float* const sums = product_.get();
    Ahead for_later(width_, fetches(rank_, width_));
    if (next != nullptr) for_later.add(grad_, next->row, next->count);
    for_later.add(grad_tokens_, rows.dropped_row, rows.dropped);
    for (int64_t column = 0; column < width_; column += 32) {
      product(sums + column, width_, delta_.get(), down_, column, for_later);
    }
    for (int64_t i = 0; i < rows.count; ++i) {
      for (int64_t column = 0; column < width_; column += 32) {
        const float* const sum = sums + i * width_ + column;
        store_pair(grad_tokens_ + rows.row[i] * width_ + column, load(sum), load(sum + 16));
      }
    }
  }
  if (!weights) return;
  fill_rows(tokens_panel_, collected_, gathered(tokens_, rows, token_rows_.get(), width_), width_);
  fill_columns(delta_panel_, collected_, delta_.get(), rank_);
  fill_columns(hidden_panel_, collected_, scaled_hidden_.get(), rank_);
  collected_ += kAmxRows;
  if (collected_ == kPanelRows) finish();
}

// delta = factor * (grad @ up^T) where hidden > 0, and factor * hidden; zeros behind the last row.
template <class R>
PUMA_AMX void AmxBackward<R>::make_delta(const Step& rows, const bf16* grad) {
  alignas(64) float sums[kAmxRows * 32];
  const __m512 zero = _mm512_setzero_ps();
  Ahead for_this_step(width_, fetches(width_, rank_));
  for_this_step.add(up_sum_ == nullptr ? nullptr : tokens_, rows.row, rows.count);
  for_this_step.add(grad_tokens_, rows.row, rows.count);
  for (int64_t column = 0; column < rank_; column += 32) {
    product(sums, 32, grad, up_, column, for_this_step);
    for (int64_t i = 0; i < kAmxRows; ++i) {
      __m512 delta[2] = {zero, zero}, scaled[2] = {zero, zero};
      if (i < rows.count) {
        const __m512 factor = _mm512_set1_ps(rows.factor[i]);
        PUMA_UNROLL for (int c = 0; c < 2; ++c) {
          const __m512 h = load(hidden_ + (rows.packed + i) * rank_ + column + 16 * c);
          const __mmask16 positive = _mm512_cmp_ps_mask(h, zero, _CMP_GT_OQ);
          delta[c] = _mm512_maskz_mul_ps(positive, factor, load(sums + 32 * i + 16 * c));
          scaled[c] = _mm512_mul_ps(factor, h);
        }
      }
      store_pair(delta_.get() + i * rank_ + column, delta[0], delta[1]);
      store_pair(scaled_hidden_.get() + i * rank_ + column, scaled[0], scaled[1]);
    }
  }
}

template <class R>
void AmxBackward<R>::finish() {
  if (collected_ == 0) return;
  add_product(down_sum_, rank_, width_, delta_panel_, tokens_panel_, collected_);
  add_product(up_sum_, rank_, width_, hidden_panel_, grad_panel_, collected_);
  collected_ = 0;
}

template class AmxForward<bf16>;
template class AmxForward<float>;
template class AmxBackward<bf16>;
template class AmxBackward<float>;

}  // namespace puma

#endif
