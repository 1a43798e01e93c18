// Which items of a panel can be as near to a query as its limit. Products of 8 bits, or of float32, tell so quickly;
// they leave out none that is, and let pass some that are not.
#pragma once

#include <cstdint>
#include <vector>

#include "gallery_panels.h"

namespace puma {

// Queries of one tile.
constexpr int64_t TILE_QUERIES = 8;

// Consecutive queries and what is known of each. Columns have room for a whole number of tiles.
class Queries {
 public:
  // For so many queries at most.
  Queries(const PackedGallery& gallery, const uint8_t* data, int64_t most);

  // Takes rows (count, width) and the limit of each, or infinity.
  void take(const float* rows, const float* limits, int64_t count);

  const float* row(int64_t i) const { return rows_ + i * gallery_.width(); }
  void set_limit(int64_t i, float limit) { limit_[i] = limit; }

 private:
  friend void find_candidates(uint64_t* candidates, const Queries& queries, int64_t first, int64_t panel);

  const PackedGallery& gallery_;
  const uint8_t* data_;
  const float* rows_ = nullptr;
  int64_t count_ = 0;
  std::vector<int8_t> numbers_;
  std::vector<float> limit_, scale_, error_, length_, square_, outer_;
  std::vector<int32_t> sum_;
};

// For each of the queries of a tile, `first` and those after it: bit i says that item i of the panel may be so near.
void find_candidates(uint64_t* candidates, const Queries& queries, int64_t first, int64_t panel);

}  // namespace puma
