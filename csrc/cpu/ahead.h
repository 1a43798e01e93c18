// Rows that are used soon are fetched a little at a time while products are computed, so that memory never stands still.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lines.h"
#include "simd.h"

namespace puma {

class Ahead {
 public:
  static constexpr int64_t kMost = 4;  // tensors

  // calls: how often fetch will be called.
  Ahead(int64_t width, int64_t calls) : width_(width), calls_(calls) {}

  // These rows of a (B*N, width) tensor; none if it is null. Worth it also for what will be written: a processor reads it
  // first.
  template <class T>
  void add(const T* tensor, const int64_t* rows, int64_t count) {
    if (tensor == nullptr || count == 0 || count_ == kMost) return;
    sources_[count_++] = {reinterpret_cast<const char*>(tensor), sizeof(T), rows, count};
    rows_ = std::max(rows_, count);
    pieces_ = (rows_ * ((width_ + kPiece - 1) / kPiece) + calls_ - 1) / calls_;
  }

  // What is next of each.
  PUMA_INLINE void fetch() {
    for (int64_t piece = 0; piece < pieces_ && row_ < rows_; ++piece) fetch_piece();
  }

 private:
  static constexpr int64_t kPiece = 64;  // elements
  static constexpr int kToSecondLevel = 2;

  struct Source {
    const char* first;
    int64_t element;
    const int64_t* rows;
    int64_t count;
  };

  PUMA_INLINE void fetch_piece() {
    for (int64_t s = 0; s < count_; ++s) {
      const Source& source = sources_[s];
      if (row_ >= source.count) continue;
      const char* const here = source.first + (source.rows[row_] * width_ + column_) * source.element;
      for (int64_t byte = 0; byte < kPiece * source.element; byte += 2 * kLineBytes) {
        __builtin_prefetch(here + byte, 0, kToSecondLevel);
        __builtin_prefetch(here + byte + kLineBytes, 0, kToSecondLevel);
      }
    }
    column_ += kPiece;
    if (column_ >= width_) {
      column_ = 0;
      ++row_;
    }
  }

  int64_t width_, calls_, pieces_ = 0, rows_ = 0, row_ = 0, column_ = 0, count_ = 0;
  Source sources_[kMost];
};

}  // namespace puma
