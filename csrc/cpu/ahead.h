// Rows that are used soon are fetched a little at a time while products are computed, so that memory never stands still.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace puma {

class Ahead {
 public:
  explicit Ahead(int64_t width) : width_(width) {}

  // These rows of a (B*N, width) tensor; none if it is null. Worth it also for what will be written: a processor reads it
  // first. For at most kMost tensors.
  template <class T>
  void add(const T* tensor, const int64_t* rows, int64_t count) {
    if (tensor == nullptr || count == 0) return;
    sources_[sources_count_++] = {reinterpret_cast<const char*>(tensor), sizeof(T), rows, count};
    rows_ = std::max(rows_, count);
  }

  // The next kPiece elements of each.
  PUMA_INLINE void fetch() {
    if (row_ == rows_) return;
    for (int64_t s = 0; s < sources_count_; ++s) {
      const Source& source = sources_[s];
      if (row_ >= source.count) continue;
      const char* const here = source.first + (source.rows[row_] * width_ + column_) * source.element;
      for (int64_t byte = 0; byte < kPiece * source.element; byte += 2 * kLine) {
        __builtin_prefetch(here + byte, 0, kToSecondLevel);
        __builtin_prefetch(here + byte + kLine, 0, kToSecondLevel);
      }
    }
    column_ += kPiece;
    if (column_ >= width_) {
      column_ = 0;
      ++row_;
    }
  }

  static constexpr int64_t kPiece = 64;

 private:
  static constexpr int64_t kLine = 64, kMost = 5;
  static constexpr int kToSecondLevel = 2;

  struct Source {
    const char* first;
    int64_t element;
    const int64_t* rows;
    int64_t count;
  };

  int64_t width_, rows_ = 0, row_ = 0, column_ = 0, sources_count_ = 0;
  Source sources_[kMost];
};

}  // namespace puma
