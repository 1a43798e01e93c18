// Rows that are used soon are fetched a little at a time while products are computed, so that memory never stands still.
#pragma once

#include <cstdint>

#include "simd.h"
#include "step.h"

namespace puma {

class Ahead {
 public:
  // The rows of a step, which may be null: then there is nothing to fetch.
  Ahead(const Step* step, int64_t width) : step_(step), rows_(step == nullptr ? 0 : step->count), width_(width) {}

  // Those of one (B*N, width) tensor, of at most kTensors; of none if it is null. Worth it also for what will be
  // written: a processor reads it first.
  template <class T>
  void add(const T* tensor) {
    if (tensor == nullptr) return;
    tensors_[count_++] = {reinterpret_cast<const char*>(tensor), sizeof(T)};
  }

  // The next kPiece elements of each.
  PUMA_INLINE void fetch() {
    if (row_ == rows_) return;
    const int64_t at = step_->row[row_] * width_ + column_;
    for (int64_t t = 0; t < count_; ++t) {
      const char* const here = tensors_[t].first + at * tensors_[t].element;
      for (int64_t byte = 0; byte < kPiece * tensors_[t].element; byte += 2 * kLine) {
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
  static constexpr int64_t kLine = 64, kTensors = 4;
  static constexpr int kToSecondLevel = 2;

  struct Source {
    const char* first;
    int64_t element;
  };

  const Step* step_;
  int64_t rows_, width_, row_ = 0, column_ = 0, count_ = 0;
  Source tensors_[kTensors];
};

}  // namespace puma
