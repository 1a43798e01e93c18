#include "distance_tiles.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>

#include "simd.h"

namespace puma {
namespace {

// I queries and J vectors of items.
template <int bytes, int I, int J>
PUMA_INLINE void tile_part(
    DistanceTile& tile, int64_t row, int64_t column, const float* panel, const float* lengths, const float* queries,
    const float* own, const float* limits, int64_t width) {
  using V = typename Vector<float, bytes>::type;
  using Flags = typename Vector<uint8_t, bytes / 4>::type;
  constexpr int W = bytes / sizeof(float);
  V sum[I][J];
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] = V{};
  }
  for (int64_t c = 0; c < width; ++c) {
    V item[J];
    PUMA_UNROLL for (int j = 0; j < J; ++j) item[j] = *reinterpret_cast<const V*>(panel + c * PANEL + j * W);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      const float query = queries[i * width + c];
      PUMA_UNROLL for (int j = 0; j < J; ++j) sum[i][j] += query * item[j];
    }
  }
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      // Doubling is exact: a fused multiply-add rounds the same.
      V distance = (own[i] + *reinterpret_cast<const V*>(lengths + j * W)) - 2 * sum[i][j];
      distance = distance < 0 ? V{} : distance;  // NaN stays, and is nearer than nothing
      *reinterpret_cast<V*>(&tile.distance[row + i][column + j * W]) = distance;
      *reinterpret_cast<Flags*>(&tile.nearer[row + i][column + j * W]) =
          __builtin_convertvector(distance < limits[i], Flags);
    }
  }
}

template <int bytes, int I, int J>
PUMA_INLINE void tile_rows(
    DistanceTile& tile, int64_t row, const float* panel, const float* lengths, const float* queries, const float* own,
    const float* limits, int64_t width) {
  constexpr int columns = J * bytes / sizeof(float);
  static_assert(PANEL % columns == 0);
  for (int64_t column = 0; column < PANEL; column += columns) {
    tile_part<bytes, I, J>(
        tile, row, column, panel + column, lengths + column, queries + row * width, own + row, limits + row, width);
  }
}

template <int bytes, int I, int J>
PUMA_INLINE void whole_tile(
    DistanceTile& tile, const float* panel, const float* lengths, const float* queries, const float* own,
    const float* limits, int64_t width, int64_t count) {
  int64_t row = 0;
  for (; row + I <= count; row += I) tile_rows<bytes, I, J>(tile, row, panel, lengths, queries, own, limits, width);
  for (; row < count; ++row) tile_rows<bytes, 1, J>(tile, row, panel, lengths, queries, own, limits, width);
  for (row = 0; row < count; ++row) {
    uint8_t any = 0;
    for (int64_t i = 0; i < PANEL; ++i) any |= tile.nearer[row][i];
    tile.any[row] = any != 0;
  }
}

using Kernel = void (*)(
    DistanceTile&, const float*, const float*, const float*, const float*, const float*, int64_t, int64_t);

// I * J sums and what they are made of fill the registers.
#define PUMA_TILE(NAME, BYTES, I, J, ...)                                                                           \
  __VA_ARGS__ void tile_##NAME(                                                                                     \
      DistanceTile& tile, const float* panel, const float* lengths, const float* queries, const float* own,         \
      const float* limits, int64_t width, int64_t count) {                                                          \
    whole_tile<BYTES, I, J>(tile, panel, lengths, queries, own, limits, width, count);                              \
  }

PUMA_TILE(portable, 16, 4, 2)
#if defined(__x86_64__)
PUMA_TILE(avx2, 32, 4, 3, PUMA_AVX2)
PUMA_TILE(avx512, 64, 8, 3, PUMA_AVX512)
#endif

Kernel kernel() {
#if defined(__x86_64__)
  return choose<Kernel>(&tile_portable, &tile_avx2, &tile_avx512);
#else
  return &tile_portable;
#endif
}

}  // namespace

float squared_length(const float* row, int64_t width) {
  double sum = 0;
  for (int64_t c = 0; c < width; ++c) sum += static_cast<double>(row[c]) * row[c];
  return static_cast<float>(sum);
}

void pack_panels(float* columns, float* lengths, const float* rows, int64_t items, int64_t width) {
  const int64_t count = (items + PANEL - 1) / PANEL;
  torch::stable::parallel_for(0, count, 16, [=](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * PANEL, here = std::min(PANEL, items - first);
      const float* const panel_rows = rows + first * width;
      float* const out = columns + first * width;
      for (int64_t c = 0; c < width; ++c) {
        for (int64_t i = 0; i < here; ++i) out[c * PANEL + i] = panel_rows[i * width + c];
        for (int64_t i = here; i < PANEL; ++i) out[c * PANEL + i] = 0;
      }
      for (int64_t i = 0; i < PANEL; ++i) {
        lengths[first + i] =
            i < here ? squared_length(panel_rows + i * width, width) : std::numeric_limits<float>::infinity();
      }
    }
  });
}

void distance_tile(
    DistanceTile& tile, const Panels& panels, int64_t panel, const float* queries, const float* own,
    const float* limits, int64_t count) {
  static const Kernel chosen = kernel();
  const float* const columns = panels.columns + panel * panels.width * PANEL;
  chosen(tile, columns, panels.lengths + panel * PANEL, queries, own, limits, panels.width, count);
}

}  // namespace puma
