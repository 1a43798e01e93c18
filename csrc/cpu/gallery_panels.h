// A gallery laid out for the search: panels of items side by side in memory, in 8 bits where the machine multiplies
// these faster, and what is needed to bound how far such a product is from the true one.
#pragma once

#include <cstdint>

namespace puma {

// Items of a panel.
constexpr int64_t PANEL = 48;

// A row x is looked at as x - centre, and that as scale * (whole numbers of 8 bits) + error. In float panels the centre
// is 0 and so is the error.
struct RowFacts {
  float scale;
  float error;    // length of the error, rounded up
  float length;   // of x - centre, rounded up
  float square;   // length squared, in float32 from double
  float outer;    // length of x, rounded up
  int32_t sum;    // of the whole numbers
  bool has_distances;  // false: x is not finite, or its squared length is 2^120 or more; the rest is 0
};

struct PanelFacts {
  float scale[PANEL];
  float square[PANEL];   // of x - centre; infinite for places without an item and items without distances
  float squared[PANEL];  // of x
  float error, length, outer;  // the largest of the items
  float unused;
};

// Where the parts of a packed gallery lie in memory: centre, and for each panel its facts and columns.
class PackedGallery {
 public:
  PackedGallery(int64_t items, int64_t width);

  int64_t bytes() const { return start_ + panels() * stride_; }
  int64_t items() const { return items_; }
  int64_t width() const { return width_; }
  int64_t panels() const { return (items_ + PANEL - 1) / PANEL; }
  // Whether columns are whole numbers: of item i in column c at ((c / 4) * PANEL + i) * 4 + c % 4, plus 128. Otherwise
  // they are float at c * PANEL + i.
  bool whole_numbers() const { return whole_numbers_; }
  // Bytes of a query's row of whole numbers.
  int64_t query_bytes() const { return (width_ + 3) / 4 * 4; }

  const float* centre(const uint8_t* data) const { return reinterpret_cast<const float*>(data); }
  const PanelFacts& facts(const uint8_t* data, int64_t panel) const {
    return *reinterpret_cast<const PanelFacts*>(data + start_ + panel * stride_);
  }
  const uint8_t* columns(const uint8_t* data, int64_t panel) const {
    return data + start_ + panel * stride_ + sizeof(PanelFacts);
  }

  // Fills memory of that many bytes from rows (items, width).
  void pack(uint8_t* data, const float* rows) const;

 private:
  int64_t items_, width_, start_, stride_;
  bool whole_numbers_;
};

// The whole numbers of a row, `bytes` of them, the rest 0. Without a centre: facts of the row itself, and no numbers.
RowFacts row_facts(const float* row, const float* centre, int64_t width, int8_t* numbers, int64_t bytes);

float squared_length(const float* row, int64_t width);

}  // namespace puma
