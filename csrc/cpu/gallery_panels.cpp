#include "gallery_panels.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "simd.h"

namespace puma {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Products of 8 bits, summed in 32, do not overflow up to this width.
constexpr int64_t kMostColumns = 1 << 16;
// Squared length from which on a row has no distances: below, nothing that is made of two rows overflows float32.
constexpr double kTooLong = 0x1p120;

// A length that is surely not too short.
float rounded_up(double length) { return static_cast<float>(length * (1 + 0x1p-20)); }

// The sum of term(c) over the columns, in as many parts as vectors hold.
template <class Term>
double sum_over(int64_t width, Term term) {
  constexpr int64_t parts = 8;
  double part[parts] = {};
  int64_t c = 0;
  for (; c + parts <= width; c += parts) {
    PUMA_UNROLL for (int64_t i = 0; i < parts; ++i) part[i] += term(c + i);
  }
  for (; c < width; ++c) part[c % parts] += term(c);
  double sum = 0;
  for (const double each : part) sum += each;
  return sum;
}

double sum_of_squares(const float* row, const float* centre, int64_t width) {
  return sum_over(width, [=](int64_t c) {
    const double value = static_cast<double>(row[c]) - (centre == nullptr ? 0.0 : centre[c]);
    return value * value;
  });
}

bool has_distances(double square) { return square < kTooLong; }  // NaN has none

// Mean of the rows that have distances.
void mean_row(float* mean, const float* rows, int64_t items, int64_t width) {
  std::vector<double> sum(width);
  int64_t counted = 0;
  for (int64_t i = 0; i < items; ++i) {
    if (!has_distances(sum_of_squares(rows + i * width, nullptr, width))) continue;
    for (int64_t c = 0; c < width; ++c) sum[c] += rows[i * width + c];
    ++counted;
  }
  for (int64_t c = 0; c < width; ++c) mean[c] = static_cast<float>(sum[c] / std::max<int64_t>(counted, 1));
}

}  // namespace

float squared_length(const float* row, int64_t width) {
  return static_cast<float>(sum_of_squares(row, nullptr, width));
}

RowFacts row_facts(const float* row, const float* centre, int64_t width, int8_t* numbers, int64_t bytes) {
  RowFacts facts{};
  const double outer = sum_of_squares(row, nullptr, width);
  facts.has_distances = has_distances(outer);
  if (numbers != nullptr) std::memset(numbers, 0, bytes);
  if (!facts.has_distances) return facts;
  facts.outer = rounded_up(std::sqrt(outer));
  const double inner = centre == nullptr ? outer : sum_of_squares(row, centre, width);
  facts.length = rounded_up(std::sqrt(inner));
  facts.square = static_cast<float>(inner);
  if (centre == nullptr) return facts;
  float largest = 0;
  for (int64_t c = 0; c < width; ++c) largest = std::max(largest, std::fabs(row[c] - centre[c]));
  facts.scale = largest / 127;
  const float inverse = facts.scale > 0 ? 1 / facts.scale : 0;
  for (int64_t c = 0; c < width; ++c) {
    // An inverse that overflows is of a row so short that numbers do not matter: its error says so.
    const float number = std::isfinite(inverse) ? std::nearbyint((row[c] - centre[c]) * inverse) : 0.0f;
    numbers[c] = static_cast<int8_t>(std::clamp(number, -127.0f, 127.0f));
    facts.sum += numbers[c];
  }
  const double error = sum_over(width, [=, scale = static_cast<double>(facts.scale)](int64_t c) {
    const double rest = static_cast<double>(row[c]) - centre[c] - scale * numbers[c];
    return rest * rest;
  });
  facts.error = rounded_up(std::sqrt(error));
  return facts;
}

PackedGallery::PackedGallery(int64_t items, int64_t width)
    : items_(items),
      width_(width),
      start_((width * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64),
      whole_numbers_(instruction_set() >= InstructionSet::avx512_vnni && width <= kMostColumns) {
  const int64_t columns = whole_numbers_ ? query_bytes() : width * static_cast<int64_t>(sizeof(float));
  stride_ = static_cast<int64_t>(sizeof(PanelFacts)) + PANEL * columns;
}

void PackedGallery::pack(uint8_t* data, const float* rows) const {
  float* const centre = reinterpret_cast<float*>(data);
  if (whole_numbers_) mean_row(centre, rows, items_, width_);
  torch::stable::parallel_for(0, panels(), 16, [this, data, rows, centre](int64_t begin, int64_t end) {
    std::vector<int8_t> numbers(query_bytes());
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * PANEL, here = std::min(PANEL, items_ - first);
      uint8_t* const place = data + start_ + panel * stride_;
      uint8_t* const columns = place + sizeof(PanelFacts);
      // Places without an item are filled up with what is infinitely far from everything.
      std::memset(place, 0, stride_);
      PanelFacts facts{};
      std::fill_n(facts.square, PANEL, kInfinity);
      std::fill_n(facts.squared, PANEL, kInfinity);
      for (int64_t i = 0; i < here; ++i) {
        const float* const row = rows + (first + i) * width_;
        const RowFacts item = row_facts(
            row, whole_numbers_ ? centre : nullptr, width_, whole_numbers_ ? numbers.data() : nullptr, query_bytes());
        if (!item.has_distances) continue;
        facts.scale[i] = item.scale;
        facts.square[i] = item.square;
        facts.squared[i] = squared_length(row, width_);
        facts.error = std::max(facts.error, item.error);
        facts.length = std::max(facts.length, item.length);
        facts.outer = std::max(facts.outer, item.outer);
        if (whole_numbers_) {
          for (int64_t c = 0; c < width_; ++c) {
            columns[(c / 4 * PANEL + i) * 4 + c % 4] = static_cast<uint8_t>(numbers[c] + 128);
          }
        } else {
          for (int64_t c = 0; c < width_; ++c) {
            std::memcpy(columns + (c * PANEL + i) * sizeof(float), row + c, sizeof(float));
          }
        }
      }
      std::memcpy(place, &facts, sizeof facts);
    }
  });
}

}  // namespace puma
