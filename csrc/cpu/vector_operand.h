// The right-hand side of a product on vector registers, laid out as its tiles read it.
#pragma once

#include <cstdint>

#include "lines.h"

namespace puma {

// A (depth, columns) matrix: panels of as many columns as a tile has, one row of a panel behind the other; zeros behind the
// last column.
class VectorOperand {
 public:
  VectorOperand(int64_t depth, int64_t columns);

  // A contiguous (depth, columns) matrix, and the transpose of a contiguous (columns, depth) one.
  template <class T>
  static VectorOperand of(const T* matrix, int64_t depth, int64_t columns);
  template <class T>
  static VectorOperand of_transposed(const T* matrix, int64_t depth, int64_t columns);

  int64_t panels() const;
  // Some of the panels, for threads that share the work.
  template <class T>
  void fill(const T* matrix, int64_t first_panel, int64_t end_panel);
  template <class T>
  void fill_transposed(const T* matrix, int64_t first_panel, int64_t end_panel);

  // The one that begins with this column.
  const float* panel(int64_t column) const { return panels_.get() + column * depth_; }
  int64_t depth() const { return depth_; }
  int64_t columns() const { return columns_; }

 private:
  int64_t depth_, columns_;
  Lines<float> panels_;
};

}  // namespace puma
