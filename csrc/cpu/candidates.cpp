#include "candidates.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <limits>

#include "simd.h"

namespace puma {
namespace {

// More than anything that gets lost because it is too small for float32.
constexpr float kUnderflow = 0x1p-115f;

// A tile's queries: rows, or whole numbers, and columns of what is known of them.
struct Tile {
  const float* rows;
  const int8_t* numbers;
  int64_t width, bytes;
  int count;
  const float *limit, *scale, *error, *length, *square, *outer;
  const int32_t* sum;
  float rounding;
};

// An item is a candidate if twice its product with the query, plus this, is more than its squared length: if
//   |x|^2 + |y|^2 - 2 xy <= limit
// can hold for numbers within the bounds of their errors, those of this comparison itself and those of the distance
// that is computed in float32 (sums of products: their number times half a unit in the last place of |x||y|).
PUMA_INLINE void find_thresholds(float* thresholds, const Tile& tile, const PanelFacts& panel) {
  PUMA_UNROLL for (int i = 0; i < TILE_QUERIES; ++i) {
    const float error = (tile.length[i] + tile.error[i]) * panel.error + tile.error[i] * panel.length;
    const float outer = tile.outer[i] + panel.outer, inner = tile.length[i] + panel.length;
    thresholds[i] = (tile.limit[i] - tile.square[i]) + 2 * error + tile.rounding * outer * outer +
                    0x1p-20f * inner * inner + kUnderflow;
  }
}

// I queries and J vectors of items, in float32.
template <int bytes, int I, int J>
PUMA_INLINE void float_part(
    uint64_t* candidates, const Tile& tile, const float* thresholds, int row, int64_t column, const PanelFacts& facts,
    const float* columns) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / sizeof(float);
  V sum[I][J];
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = V{};
  }
  const float* const rows = tile.rows + row * tile.width;
  for (int64_t c = 0; c < tile.width; ++c) {
    V item[J];
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      item[j] = *reinterpret_cast<const V*>(columns + c * PANEL + column + j * W);
    }
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      const float query = rows[i * tile.width + c];
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] += query * item[j];
    }
  }
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      const V square = *reinterpret_cast<const V*>(facts.square + column + j * W);
      const auto nearer = 2 * sum[i][j] + thresholds[row + i] > square;  // with NaN it is not
      PUMA_UNROLL for (int w = 0; w < W; ++w) {
        candidates[row + i] |= static_cast<uint64_t>(nearer[w] & 1) << (column + j * W + w);
      }
    }
  }
}

template <int bytes, int I, int J>
PUMA_INLINE void float_tile(
    uint64_t* candidates, const Tile& tile, const PanelFacts& facts, const uint8_t* data) {
  constexpr int64_t columns = J * bytes / sizeof(float);
  static_assert(PANEL % columns == 0);
  const float* const panel = reinterpret_cast<const float*>(data);
  float thresholds[TILE_QUERIES];
  find_thresholds(thresholds, tile, facts);
  int row = 0;
  for (; row + I <= tile.count; row += I) {
    for (int64_t column = 0; column < PANEL; column += columns) {
      float_part<bytes, I, J>(candidates, tile, thresholds, row, column, facts, panel);
    }
  }
  for (; row < tile.count; ++row) {
    for (int64_t column = 0; column < PANEL; column += columns) {
      float_part<bytes, 1, J>(candidates, tile, thresholds, row, column, facts, panel);
    }
  }
}

using Kernel = void (*)(uint64_t*, const Tile&, const PanelFacts&, const uint8_t*);

// I * J sums and what they are made of fill the registers.
#define PUMA_TILE(NAME, BYTES, I, J, ...)                                                                  \
  __VA_ARGS__ void tile_##NAME(                                                                            \
      uint64_t* candidates, const Tile& tile, const PanelFacts& facts, const uint8_t* data) {              \
    float_tile<BYTES, I, J>(candidates, tile, facts, data);                                                \
  }

PUMA_TILE(portable, 16, 4, 2)
#if defined(__x86_64__)
PUMA_TILE(avx2, 32, 4, 3, PUMA_AVX2)
PUMA_TILE(avx512, 64, 8, 3, PUMA_AVX512)

// In whole numbers. Columns of queries have room for a whole tile: the last may compute more than is asked.
PUMA_AVX512_VNNI void whole_number_tile(
    uint64_t* candidates, const Tile& tile, const PanelFacts& facts, const uint8_t* columns) {
  using Whole = Vector<int32_t, 64>::type;
  using V = Vector<float, 64>::type;
  constexpr int I = TILE_QUERIES, J = PANEL / 16;
  float thresholds[I];
  find_thresholds(thresholds, tile, facts);
  Whole sum[I][J];
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = Whole{} - 128 * tile.sum[i];
  }
  for (int64_t c = 0; c < tile.bytes; c += 4) {
    __m512i item[J];
    PUMA_UNROLL for (int j = 0; j < J; ++j) item[j] = _mm512_loadu_si512(columns + c * PANEL + j * 64);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      int32_t four;
      std::memcpy(&four, tile.numbers + i * tile.bytes + c, sizeof four);
      const __m512i query = _mm512_set1_epi32(four);
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        sum[i][j] = reinterpret_cast<Whole>(
            _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum[i][j]), item[j], query));
      }
    }
  }
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    uint64_t nearer = 0;
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      const V scale = *reinterpret_cast<const V*>(facts.scale + j * 16);
      const V square = *reinterpret_cast<const V*>(facts.square + j * 16);
      const V product = __builtin_convertvector(sum[i][j], V) * scale;
      const V twice = product * (2 * tile.scale[i]) + thresholds[i];
      nearer |= static_cast<uint64_t>(_mm512_cmp_ps_mask(
                    reinterpret_cast<__m512>(twice), reinterpret_cast<__m512>(square), _CMP_GT_OQ))
                << (j * 16);
    }
    candidates[i] = nearer;
  }
}
#endif

Kernel kernel(bool whole_numbers) {
#if defined(__x86_64__)
  if (whole_numbers) return &whole_number_tile;
  return choose<Kernel>(&tile_portable, &tile_avx2, &tile_avx512);
#else
  return &tile_portable;
#endif
}

}  // namespace

Queries::Queries(const PackedGallery& gallery, const uint8_t* data, int64_t most) : gallery_(gallery), data_(data) {
  most = (most + TILE_QUERIES - 1) / TILE_QUERIES * TILE_QUERIES;
  numbers_.resize(gallery.whole_numbers() ? most * gallery.query_bytes() : 0);
  for (auto* column : {&limit_, &scale_, &error_, &length_, &square_, &outer_}) column->resize(most);
  sum_.resize(most);
}

void Queries::take(const float* rows, const float* limits, int64_t count) {
  rows_ = rows;
  count_ = count;
  const bool whole = gallery_.whole_numbers();
  const int64_t bytes = gallery_.query_bytes();
  for (int64_t i = 0; i < count; ++i) {
    const RowFacts facts = row_facts(
        row(i), whole ? gallery_.centre(data_) : nullptr, gallery_.width(),
        whole ? numbers_.data() + i * bytes : nullptr, bytes);
    // What has no distances is nearer than nothing.
    limit_[i] = facts.has_distances ? limits[i] : -std::numeric_limits<float>::infinity();
    scale_[i] = facts.scale;
    error_[i] = facts.error;
    length_[i] = facts.length;
    square_[i] = facts.square;
    outer_[i] = facts.outer;
    sum_[i] = facts.sum;
  }
}

void find_candidates(uint64_t* candidates, const Queries& queries, int64_t first, int64_t panel) {
  static const Kernel kernels[] = {kernel(false), kernel(true)};
  const PackedGallery& gallery = queries.gallery_;
  const bool whole = gallery.whole_numbers();
  const int64_t width = gallery.width(), bytes = gallery.query_bytes();
  // Distances are sums of width / 16 products in 16 parts, those of float panels of all products.
  const float rounding = static_cast<float>((whole ? width / 16 : 2 * width) + 32) * 0x1p-24f;
  const Tile tile{
      queries.rows_ + first * width,
      queries.numbers_.data() + (whole ? first * bytes : 0),
      width,
      bytes,
      static_cast<int>(std::min(TILE_QUERIES, queries.count_ - first)),
      queries.limit_.data() + first,
      queries.scale_.data() + first,
      queries.error_.data() + first,
      queries.length_.data() + first,
      queries.square_.data() + first,
      queries.outer_.data() + first,
      queries.sum_.data() + first,
      rounding};
  for (int64_t i = 0; i < TILE_QUERIES; ++i) candidates[i] = 0;
  kernels[whole](candidates, tile, gallery.facts(queries.data_, panel), gallery.columns(queries.data_, panel));
}

}  // namespace puma
