#include "pair_adapter.h"

#include <algorithm>

#include "ahead.h"
#include "bf16_vectors.h"

#if PUMA_HAS_BF16

namespace puma {
namespace {

// In a block of a left-hand side one row's elements lie behind the other's: a tile finds all its rows at fixed distances
// from one address.
constexpr int64_t kColumns = kPairColumns;
constexpr int kRows = 14;  // of a tile of products along rows, two vectors wide
static_assert(kPairRows % kRows == 0 && kRows % 2 == 0);
// Of the products that sum over rows: the tile, the columns of a strip, and the rows that are collected (measured).
constexpr int kSumRows = 8, kSumVectors = 3;
constexpr int64_t kStrip = 16 * kSumVectors;
constexpr int64_t kBetweenFetches = 16;  // rows
constexpr int64_t kMostCollected = 4 * kPairRows;
static_assert(kColumns % kSumRows == 0);

// I rows and J vectors of 16 columns, whose sums stay in registers.
template <int I, int J>
struct PairTile {
  __m512 sum[I][J];

  PUMA_BF16_INLINE void clear() {
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = _mm512_setzero_ps();
    }
  }

  // += left (I, 2) @ right (2, 16 J); left's pairs are `stride` elements apart.
  PUMA_BF16_INLINE void add(const bf16* left, int64_t stride, const bf16* right) {
    __m512bh r[J];
    PUMA_UNROLL for (int j = 0; j < J; ++j) r[j] = (__m512bh)_mm512_loadu_si512(right + 32 * j);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      int pair;
      std::memcpy(&pair, left + i * stride, sizeof pair);
      const auto l = (__m512bh)_mm512_set1_epi32(pair);
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], r[j], l);
    }
  }
};
using RowTile = PairTile<kRows, 2>;

// tile = left, blocks of kPairRows rows, @ a panel of `depth` rows.
PUMA_BF16_INLINE void multiply(RowTile& tile, const bf16* left, const bf16* panel, int64_t depth, Ahead& ahead) {
  tile.clear();
  for (int64_t block = 0; block < depth; block += kColumns, left += kPairRows * kColumns) {
    ahead.fetch();
    _Pragma("GCC unroll 4") for (int64_t k = 0; k < kColumns; k += 2, panel += 2 * kColumns) {
      tile.add(left + k, kColumns, panel);
    }
  }
}

// How often `multiply` fetches in a whole product.
int64_t fetches(int64_t depth, int64_t columns, const Step& rows) {
  return rounded_up(columns, kColumns) / kColumns * (rounded_up(depth, kColumns) / kColumns) * ((rows.count + kRows - 1) / kRows);
}

PUMA_BF16_INLINE void copy_row(bf16* out, int64_t next, const bf16* row, int64_t width) {
  for (int64_t c = 0; c < width; c += kColumns, out += next) _mm512_storeu_si512(out, _mm512_loadu_si512(row + c));
}
PUMA_BF16_INLINE void copy_row(bf16* out, int64_t next, const float* row, int64_t width) {
  for (int64_t c = 0; c < width; c += kColumns, out += next) store_pair(out, load(row + c), load(row + c + 16));
}

// The step's rows of a (B*N, width) matrix as a left-hand side; zeros behind the last.
template <class S>
PUMA_BF16_INLINE void pack_rows(bf16* tile, const S* source, const Step& rows, int64_t width) {
  for (int64_t i = 0; i < kPairRows; ++i) {
    if (i < rows.count) {
      copy_row(tile + i * kColumns, kPairRows * kColumns, source + rows.row[i] * width, width);
    } else {
      for (int64_t c = 0; c < width; c += kColumns) {
        _mm512_storeu_si512(tile + c * kPairRows + i * kColumns, _mm512_setzero_si512());
      }
    }
  }
}

// Both for multiples of 16.
PUMA_AVX512_BF16 void fill(bf16* panels, const bf16* matrix, int64_t depth, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kColumns) {
    for (int64_t k = 0; k < rounded_up(depth, kColumns); k += 2, panels += 2 * kColumns) {
      const bf16* const in = matrix + k * columns + column;
      PUMA_UNROLL for (int64_t c = 0; c < kColumns; c += 16) {
        const bool inside = k < depth && column + c < columns;
        _mm512_storeu_si512(panels + 2 * c, inside ? interleaved(in + c, in + columns + c) : _mm512_setzero_si512());
      }
    }
  }
}

// Pairs lie side by side in the transpose's transpose.
PUMA_AVX512_BF16 void fill_transposed(bf16* panels, const bf16* matrix, int64_t depth, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kColumns) {
    for (int64_t k = 0; k < depth; k += 32, panels += 32 * kColumns) {
      for (int64_t c = 0; c < kColumns; c += 16) {
        const bf16* in = matrix + (column + c) * depth + k;
        int64_t stride = depth;
        alignas(64) bf16 some[16 * 32];
        if (k + 32 > depth || column + c >= columns) {
          const __mmask32 there = column + c >= columns ? 0U : 0xffffU;
          for (int64_t i = 0; i < 16; ++i) {
            _mm512_storeu_si512(some + 32 * i, _mm512_maskz_loadu_epi16(there, in + i * stride));
          }
          in = some;
          stride = 32;
        }
        transpose_pairs(panels + 2 * c, 2 * kColumns, in, stride);
      }
    }
  }
}

// Two rows of 32 elements, interleaved: those of 64 elements of a panel.
PUMA_BF16_INLINE void store_interleaved(bf16* out, __m512i even, __m512i odd) {
  const __m512i first = _mm512_set_epi16(
      47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1,
      32, 0);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  _mm512_storeu_si512(out, _mm512_permutex2var_epi16(even, first, odd));
  _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(even, second, odd));
}

// The same of float32, rounded as store_pair does.
PUMA_BF16_INLINE __m512i interleaved(const float* even, const float* odd) {
  const __m512i order = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
      16, 0);
  return _mm512_permutexvar_epi16(order, narrowed(load(even), load(odd)));
}

// sum += narrow (rows, rank) transposed @ source (rows, width), the rows that were collected.
template <class S>
PUMA_AVX512_BF16 void add_product(
    float* sum, const bf16* narrow, int64_t rank, const S* source, const int64_t* rows, int64_t count, int64_t width,
    bf16* strip) {
  const int64_t calls = rank / kSumRows * ((count + kBetweenFetches - 1) / kBetweenFetches);
  for (int64_t column = 0; column < width; column += kStrip) {
    for (int64_t k = 0; k < count; k += 2) {
      const S* const even = source + rows[k] * width + column;
      const bool both = k + 1 < count;
      const S* const odd = both ? source + rows[k + 1] * width + column : even;
      PUMA_UNROLL for (int j = 0; j < kSumVectors; ++j) {
        __m512i pairs{};
        if (column + 16 * j < width) {
          pairs = _mm512_maskz_mov_epi16(both ? ~0U : 0x55555555U, interleaved(even + 16 * j, odd + 16 * j));
        }
        _mm512_storeu_si512(strip + (k / 2 * kSumVectors + j) * 32, pairs);
      }
    }
    StripAhead ahead(source, rows, count, width, column + kStrip, kStrip, calls);
    for (int64_t r = 0; r < rank; r += kSumRows, sum += kSumRows * kStrip) {
      PairTile<kSumRows, kSumVectors> tile;
      tile.clear();
      const bf16* left = narrow + r / kColumns * kMostCollected * kColumns + r % kColumns * 2;
      const bf16* right = strip;
      for (int64_t k = 0; k < count;) {
        ahead.fetch();
        const int64_t end = std::min(k + kBetweenFetches, count);
        _Pragma("GCC unroll 4") for (; k < end; k += 2, left += 2 * kColumns, right += 2 * kStrip) {
          tile.add(left, 2, right);
        }
      }
      PUMA_UNROLL for (int i = 0; i < kSumRows; ++i) {
        PUMA_UNROLL for (int j = 0; j < kSumVectors; ++j) {
          float* const here = sum + i * kStrip + 16 * j;
          _mm512_storeu_ps(here, _mm512_add_ps(_mm512_loadu_ps(here), tile.sum[i][j]));
        }
      }
    }
  }
}

}  // namespace

bool pairs_serve(int64_t width, int64_t rank) {
  return instruction_set() == InstructionSet::avx512_bf16 && width % kColumns == 0 && rank % 16 == 0;
}

PairOperand PairOperand::of(const bf16* matrix, int64_t depth, int64_t columns) {
  PairOperand operand(depth, columns);
  fill(operand.panels_.get(), matrix, depth, columns);
  return operand;
}

PairOperand PairOperand::of_transposed(const bf16* matrix, int64_t depth, int64_t columns) {
  PairOperand operand(depth, columns);
  fill_transposed(operand.panels_.get(), matrix, depth, columns);
  return operand;
}

template <class R>
PUMA_AVX512_BF16 void PairForward<R>::step(const Step& rows, const Step* next) {
  bf16* const x = token_tile_.get();
  bf16* const h = hidden_tile_.get();
  pack_rows(x, tokens_, rows, width_);
  ForwardAhead ahead(
      rows, next, width_, fetches(width_, rank_, rows), fetches(rank_, width_, rows), tokens_, residual_, wide_, narrow_, out_);
  const __m512 zero = _mm512_setzero_ps();
  RowTile tile;
  for (int64_t column = 0; column < rank_; column += kColumns) {
    const __mmask32 inside = column + kColumns <= rank_ ? ~0U : 0xffffU;
    for (int64_t first = 0; first < rows.count; first += kRows) {
      multiply(tile, x + first * kColumns, down_.panel(column), width_, ahead.for_this_step);
      PUMA_UNROLL for (int i = 0; i < kRows; ++i) {
        // Zero first: of NaN and another the second is taken. What is filled up is 0 also where a token is infinite.
        const __m512i narrow = _mm512_maskz_mov_epi16(
            inside, narrowed(_mm512_max_ps(zero, tile.sum[i][0]), _mm512_max_ps(zero, tile.sum[i][1])));
        _mm512_storeu_si512(h + column * kPairRows + (first + i) * kColumns, narrow);
        if (hidden_ == nullptr || first + i >= rows.count) continue;
        _mm512_mask_storeu_epi16(hidden_ + (rows.packed + first + i) * rank_ + column, inside, narrow);
      }
    }
  }
  for (int64_t column = 0; column < width_; column += kColumns) {
    for (int64_t first = 0; first < rows.count; first += kRows) {
      multiply(tile, h + first * kColumns, up_.panel(column), up_.filled_depth(), ahead.for_later);
      PUMA_UNROLL for (int i = 0; i < kRows; ++i) {
        if (first + i >= rows.count) break;
        const __m512 factor = _mm512_set1_ps(rows.factor[first + i]);
        const int64_t place = rows.row[first + i] * width_ + column;
        __m512 value[2];
        PUMA_UNROLL for (int j = 0; j < 2; ++j) {
          const int64_t at = place + 16 * j;
          value[j] = load(residual_ + at);
          if (wide_ != nullptr) value[j] = _mm512_add_ps(value[j], load(wide_ + at));
          if (narrow_ != nullptr) value[j] = _mm512_add_ps(value[j], load(narrow_ + at));
          value[j] = _mm512_fmadd_ps(factor, tile.sum[i][j], value[j]);
        }
        store_exactly(out_ + place, value[0], value[1]);
      }
    }
  }
}

template <class R>
int64_t PairBackward<R>::strip(int64_t /*width*/) {
  return kStrip;
}

template <class R>
PairBackward<R>::PairBackward(
    const PairOperand& down, const PairOperand& up, const R* grad, const bf16* tokens, const bf16* hidden,
    bf16* grad_tokens, float* down_sum, float* up_sum)
    : down_(down), up_(up), grad_(grad), tokens_(tokens), hidden_(hidden), grad_tokens_(grad_tokens),
      down_sum_(down_sum), up_sum_(up_sum), width_(up.depth()), rank_(down.depth()),
      grad_tile_(lines<bf16>(kPairRows * width_)), delta_tile_(lines<bf16>(kPairRows * down.filled_depth())),
      delta_panel_(lines<bf16>(kMostCollected * down.filled_depth())),
      hidden_panel_(lines<bf16>(kMostCollected * down.filled_depth())),
      strip_(lines<bf16>(kMostCollected * kStrip)), collected_rows_(lines<int64_t>(kMostCollected)) {}

template <class R>
PUMA_AVX512_BF16 void PairBackward<R>::step(const Step& rows, const Step* next) {
  pack_rows(grad_tile_.get(), grad_, rows, width_);
  make_delta(rows);
  if (grad_tokens_ != nullptr) {
    Ahead for_later(width_, fetches(rank_, width_, rows));
    if (next != nullptr) {
      for_later.add(grad_, next->row, next->count);
      for_later.add_neighbours(hidden_ + next->packed * rank_, next->count, rank_);
    }
    for_later.add(grad_tokens_, rows.dropped_row, rows.dropped);
    RowTile tile;
    for (int64_t column = 0; column < width_; column += kColumns) {
      for (int64_t first = 0; first < rows.count; first += kRows) {
        multiply(tile, delta_tile_.get() + first * kColumns, down_.panel(column), down_.filled_depth(), for_later);
        PUMA_UNROLL for (int i = 0; i < kRows; ++i) {
          if (first + i >= rows.count) break;
          store_pair(grad_tokens_ + rows.row[first + i] * width_ + column, tile.sum[i][0], tile.sum[i][1]);
        }
      }
    }
  }
  if (up_sum_ == nullptr) return;
  std::copy(rows.row, rows.row + rows.count, collected_rows_.get() + collected_);
  collected_ += rows.count;  // an odd number only in the last step
  if (collected_ + kPairRows > kMostCollected) finish();
}

// delta = factor * (grad @ up^T) where hidden > 0, and factor * hidden; zeros behind the last row.
template <class R>
PUMA_AVX512_BF16 void PairBackward<R>::make_delta(const Step& rows) {
  const __m512 zero = _mm512_setzero_ps();
  Ahead for_this_step(width_, fetches(width_, rank_, rows));
  for_this_step.add(up_sum_ == nullptr ? nullptr : tokens_, rows.row, rows.count);
  for_this_step.add(grad_tokens_, rows.row, rows.count);
  RowTile tile;
  for (int64_t column = 0; column < rank_; column += kColumns) {
    for (int64_t first = 0; first < rows.count; first += kRows) {
      multiply(tile, grad_tile_.get() + first * kColumns, up_.panel(column), width_, for_this_step);
      bf16* const deltas = delta_tile_.get() + column * kPairRows + first * kColumns;
      const int64_t collected = column * kMostCollected + (collected_ + first) * kColumns;
      __m512i even_delta{}, even_scaled{};
      PUMA_UNROLL for (int i = 0; i < kRows; ++i) {
        __m512 delta[2] = {zero, zero}, scaled[2] = {zero, zero};
        if (first + i < rows.count) {
          const __m512 factor = _mm512_set1_ps(rows.factor[first + i]);
          PUMA_UNROLL for (int j = 0; j < 2; ++j) {
            if (column + 16 * j >= rank_) break;
            const __m512 h = load(hidden_ + (rows.packed + first + i) * rank_ + column + 16 * j);
            const __mmask16 positive = _mm512_cmp_ps_mask(h, zero, _CMP_GT_OQ);
            delta[j] = _mm512_maskz_mul_ps(positive, factor, tile.sum[i][j]);
            scaled[j] = _mm512_mul_ps(factor, h);
          }
        }
        const __m512i narrow_delta = narrowed(delta[0], delta[1]);
        const __m512i narrow_scaled = narrowed(scaled[0], scaled[1]);
        _mm512_storeu_si512(deltas + i * kColumns, narrow_delta);
        if (i % 2 == 0) {
          even_delta = narrow_delta;
          even_scaled = narrow_scaled;
        } else {
          store_interleaved(delta_panel_.get() + collected + (i - 1) * kColumns, even_delta, narrow_delta);
          store_interleaved(hidden_panel_.get() + collected + (i - 1) * kColumns, even_scaled, narrow_scaled);
        }
      }
    }
  }
}

template <class R>
void PairBackward<R>::finish() {
  if (collected_ == 0) return;
  const int64_t* const rows = collected_rows_.get();
  add_product(down_sum_, delta_panel_.get(), rank_, tokens_, rows, collected_, width_, strip_.get());
  add_product(up_sum_, hidden_panel_.get(), rank_, grad_, rows, collected_, width_, strip_.get());
  collected_ = 0;
}

template class PairForward<bf16>;
template class PairForward<float>;
template class PairBackward<bf16>;
template class PairBackward<float>;

}  // namespace puma

#endif
