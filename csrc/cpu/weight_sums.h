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

// out, of T or of the type of the sums = those of all threads, of which some are without work and have none. Each
// element's are added in the order of the threads.
template <class T>
void add_up(const Tensor& out, const std::vector<Lines<accumulate_t<T>>>& sums, const SumLayout& layout) {
  using Sum = accumulate_t<T>;
  constexpr int64_t kRows = 64, kColumns = 48;
  const auto write = [&](int64_t place, const Sum* in, int64_t n) {
    if (out.scalar_type() == scalar_type<T>()) {
      convert(mutable_data<T>(out) + place, in, n);
    } else {
      convert(mutable_data<Sum>(out) + place, in, n);
    }
  };
  torch::stable::parallel_for(0, layout.rows, kRows, [&](int64_t begin, int64_t end) {
    Sum total[kColumns], turned[kColumns * kRows];
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t rows = std::min(kRows, end - row);
      for (int64_t column = 0, columns = 0; column < layout.columns; column += columns) {
        const int64_t in_strip = column % layout.strip;
        columns = std::min({kColumns, layout.strip - in_strip, layout.columns - column});
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t place = (column - in_strip) * layout.rows + (row + r) * layout.strip + in_strip;
          std::fill(total, total + columns, Sum{});
          for (const Lines<Sum>& sum : sums) {
            if (sum == nullptr) continue;
            for (int64_t c = 0; c < columns; ++c) total[c] += sum[place + c];
          }
          if (!layout.transpose) {
            write((row + r) * layout.columns + column, total, columns);
          } else {
            for (int64_t c = 0; c < columns; ++c) turned[c * kRows + r] = total[c];
          }
        }
        for (int64_t c = 0; layout.transpose && c < columns; ++c) {
          write((column + c) * layout.rows + row, turned + c * kRows, rows);
        }
      }
    }
  });
}

}  // namespace puma
