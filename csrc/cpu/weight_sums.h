// The weights' gradients from what each thread summed up.
#pragma once

#include <algorithm>
#include <vector>

#include "gemm.h"
#include "lines.h"
#include "vector.h"

namespace puma {

// A (rows, columns) matrix lies as strips of some columns, one strip behind the other and each row by row; the last one is
// filled up. The result is the matrix, or its transpose.
struct SumLayout {
  int64_t rows, columns, strip;
  bool transpose;
};

// out = the sums of all threads, of which some are without work and have none, rounded to out's type. Each element's are
// added in the order of the threads.
template <class Out, class Sum>
void add_up_into(Out* out, const std::vector<Lines<Sum>>& sums, const SumLayout& layout) {
  constexpr int64_t kRows = 64, kColumns = 48, kWorthAThread = 1 << 13;  // elements, those of all sums
  // Pieces of at most kRows rows and kColumns columns of one strip.
  const int64_t strip_pieces = (layout.strip + kColumns - 1) / kColumns;
  const int64_t pieces = (layout.columns + layout.strip - 1) / layout.strip * strip_pieces;
  const int64_t row_blocks = (layout.rows + kRows - 1) / kRows;
  const int64_t work = kRows * kColumns * static_cast<int64_t>(sums.size());
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / work);
  torch::stable::parallel_for(0, row_blocks * pieces, grain, [&](int64_t begin, int64_t end) {
    Sum total[kColumns], turned[kColumns * kRows];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / pieces * kRows, rows = std::min(kRows, layout.rows - row), piece = task % pieces;
      const int64_t strip = piece / strip_pieces * layout.strip, in_strip = piece % strip_pieces * kColumns;
      const int64_t column = strip + in_strip;
      const int64_t columns = std::min({kColumns, layout.strip - in_strip, layout.columns - column});
      if (columns <= 0) continue;  // the last strip is filled up
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t place = strip * layout.rows + (row + r) * layout.strip + in_strip;
        std::fill(total, total + columns, Sum{});
        for (const Lines<Sum>& sum : sums) {
          if (sum == nullptr) continue;
          for (int64_t c = 0; c < columns; ++c) total[c] += sum[place + c];
        }
        if (!layout.transpose) {
          convert(out + (row + r) * layout.columns + column, total, columns);
        } else {
          for (int64_t c = 0; c < columns; ++c) turned[c * kRows + r] = total[c];
        }
      }
      for (int64_t c = 0; layout.transpose && c < columns; ++c) {
        convert(out + (column + c) * layout.rows + row, turned + c * kRows, rows);
      }
    }
  });
}

// out is of T or of the type of its sums.
template <class T>
void add_up(const Tensor& out, const std::vector<Lines<accumulate_t<T>>>& sums, const SumLayout& layout) {
  if (out.scalar_type() == scalar_type<T>()) {
    add_up_into(mutable_data<T>(out), sums, layout);
  } else {
    add_up_into(mutable_data<accumulate_t<T>>(out), sums, layout);
  }
}

}  // namespace puma
