// Rows that are used soon are fetched a little at a time while products are computed, so that memory never stands still.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lines.h"
#include "simd.h"
#include "step.h"

namespace puma {

constexpr int kToSecondLevel = 2;

class Ahead {
 public:
  static constexpr int64_t kMost = 4;  // tensors

  // calls: how often fetch will be called.
  Ahead(int64_t width, int64_t calls) : width_(width), calls_(calls) {}

  // These rows of a (B*N, width) tensor; none if it is null. Worth it also for what will be written: a processor reads it
  // first.
  template <class T>
  void add(const T* tensor, const int64_t* rows, int64_t count) {
    if (tensor != nullptr) add({reinterpret_cast<const char*>(tensor), sizeof(T), rows, count, width_});
  }
  // And so many rows, one behind the other, of a narrower one.
  template <class T>
  void add_neighbours(const T* first, int64_t count, int64_t width) {
    add({reinterpret_cast<const char*>(first), sizeof(T), kNeighbours, count, width});
  }

  // What is next of each.
  PUMA_INLINE void fetch() {
    for (int64_t piece = 0; piece < pieces_ && row_ < rows_; ++piece) fetch_piece();
  }

 private:
  static constexpr int64_t kPiece = 64;  // elements
  static constexpr int64_t kNeighbours[kMostStepRows] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                         16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

  struct Source {
    const char* first;
    int64_t element;
    const int64_t* rows;
    int64_t count, width;
  };

  void add(const Source& source) {
    if (source.count == 0 || count_ == kMost) return;
    sources_[count_++] = source;
    rows_ = std::max(rows_, source.count);
    pieces_ = (rows_ * ((width_ + kPiece - 1) / kPiece) + calls_ - 1) / calls_;
  }

  PUMA_INLINE void fetch_piece() {
    for (int64_t s = 0; s < count_; ++s) {
      const Source& source = sources_[s];
      if (row_ >= source.count || column_ >= source.width) continue;
      const char* const here = source.first + (source.rows[row_] * source.width + column_) * source.element;
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

// What a step of the adapter's forward fetches: during its first product what its end reads and writes, during the second
// the next step's tokens and the rows of dropped samples that come with this one. Tensors that are null are left out.
struct ForwardAhead {
  Ahead for_this_step, for_later;

  // How often each product fetches.
  template <class R, class T>
  ForwardAhead(
      const Step& rows, const Step* next, int64_t width, int64_t calls, int64_t later_calls, const T* tokens,
      const R* residual, const R* wide, const T* narrow, const R* out)
      : for_this_step(width, calls), for_later(width, later_calls) {
    const auto used_at_the_end = [&](const auto* tensor) {
      for_this_step.add(tensor, rows.row, rows.count);
      for_later.add(tensor, rows.dropped_row, rows.dropped);
    };
    used_at_the_end(residual);
    used_at_the_end(wide);
    used_at_the_end(narrow);
    used_at_the_end(out);
    if (next != nullptr) for_later.add(tokens, next->row, next->count);
  }
};

// The next strip of columns of a few rows, while products with this one are computed.
class StripAhead {
 public:
  // calls: how often fetch will be called. No more is fetched behind the last column.
  template <class T>
  StripAhead(const T* source, const int64_t* rows, int64_t count, int64_t width, int64_t next_column, int64_t columns,
             int64_t calls)
      : first_(reinterpret_cast<const char*>(source + next_column)),
        row_bytes_(width * static_cast<int64_t>(sizeof(T))),
        bytes_(columns * static_cast<int64_t>(sizeof(T))), rows_(rows), left_(next_column < width ? count : 0),
        at_once_((count + calls - 1) / calls) {}

  PUMA_INLINE void fetch() {
    for (int64_t i = 0; i < at_once_ && left_ > 0; ++i, ++rows_, --left_) {
      const char* const here = first_ + *rows_ * row_bytes_;
      for (int64_t byte = 0; byte < bytes_; byte += kLineBytes) __builtin_prefetch(here + byte, 0, kToSecondLevel);
      __builtin_prefetch(here + bytes_ - 1, 0, kToSecondLevel);
    }
  }

 private:
  const char* first_;
  int64_t row_bytes_, bytes_;
  const int64_t* rows_;
  int64_t left_, at_once_;
};

}  // namespace puma
