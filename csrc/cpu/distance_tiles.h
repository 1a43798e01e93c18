// Squared distances of a few queries and a panel of gallery items, whose products never leave the registers.
#pragma once

#include <cstdint>

namespace puma {

// Gallery items that lie side by side in memory.
constexpr int64_t PANEL = 48;
// Queries of one tile.
constexpr int64_t TILE_QUERIES = 8;

// Rows (items, width) cut into panels: columns[(panel * width + c) * PANEL + i] is column c of item panel * PANEL + i,
// lengths[item] its squared length. The last panel is filled up with items that are infinitely far from everything.
struct Panels {
  const float* columns;
  const float* lengths;
  int64_t count, width;
};

void pack_panels(float* columns, float* lengths, const float* rows, int64_t items, int64_t width);

// A tile's squared distances, and which are nearer than their query's limit: all bits of `nearer` set, or none.
struct DistanceTile {
  float distance[TILE_QUERIES][PANEL];
  uint8_t nearer[TILE_QUERIES][PANEL];
  bool any[TILE_QUERIES];
};

float squared_length(const float* row, int64_t width);

// Distances of up to TILE_QUERIES consecutive queries (count, panels.width), of squared lengths `own`, to one panel.
// A distance is (own + length) - 2 * product in float32, at least 0; the product is summed in the order of the columns,
// so that equal rows have equal distances wherever they stand.
void distance_tile(
    DistanceTile& tile, const Panels& panels, int64_t panel, const float* queries, const float* own,
    const float* limits, int64_t count);

}  // namespace puma
