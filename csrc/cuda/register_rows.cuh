// What a warp reads of its rows, straight into registers, a step ahead of use: where products are those of one warp.
// staged_rows.cuh is the other way, with the same functions.
#pragma once

#include "adapter_arguments.h"
#include "schedule.cuh"

namespace puma {

// A unit of a row of `width` elements from column on; rows need not be aligned, and may have been written by the kernel
// in front.
template <typename T>
PUMA_DEVICE Bytes16 load_row_unit(const T* row, int column, int width, bool aligned) {
  if (aligned) return column < width ? dev::load_written16(row + column) : Bytes16{{0, 0, 0, 0}};
  float v[kElements<T>];
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) v[e] = column + e < width ? dev::to_arithmetic(row[column + e]) : 0.0f;
  return make_unit<T>(v);
}

// The saved activation in a group of columns; zeros behind the last row.
template <typename T>
PUMA_DEVICE void load_mask(const AdapterArguments& p, const LanePlace<T>& place, int group, bool rows_aligned,
                           Bytes16 (&mask)[2]) {
  const int column = group * kGroup<T> + dev::lane() % 4 * kElements<T>;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    mask[h] = Bytes16{{0, 0, 0, 0}};
    if (!place.valid(h)) continue;
    const T* row = static_cast<const T*>(p.mask) + static_cast<int64_t>(place.compact() + 8 * h) * p.width;
    mask[h] = load_row_unit(row, column, p.width, rows_aligned);
  }
}

// What a lane reads of its two rows in a step: units (group q, row h). S: type in memory; kWritten: the kernel in front
// may have written it.
template <typename S, typename T, bool kWritten = false>
struct RowUnits {
  Stored<S, T> unit[2][2];

  // column: that of the step. Columns behind the last one are zeros: their weights are, but not what lies there.
  PUMA_DEVICE void read(const void* rows, const LanePlace<T>& place, int column) {
#pragma unroll
    for (int q = 0; q < 2; ++q) read_group(rows, place, column, q);
  }
  PUMA_DEVICE void read_group(const void* rows, const LanePlace<T>& place, int column, int q) {
    const bool whole = column + kGroup<T> < place.columns_left;  // group 1 is there, and so is group 0
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const S* row = static_cast<const S*>(rows) + (place.offset[h] + column);
      Stored<S, T>& to = unit[q][h];
      if (!whole) to.clear();
      if (whole || column + q * kGroup<T> < place.columns_left) to.template load<kWritten>(row + q * kGroup<T>);
    }
  }
};

template <typename T, typename R, int kWidth, bool kBackward, Branch kBranch>
class RegisterRows {
  using In = std::conditional_t<kBackward, R, T>;
  using B = BranchType<T, R, kBranch>;
  static constexpr bool kHasBranch = kBranch != Branch::kNone;
  static constexpr int kStepColumns = 2 * kGroup<T>;
  // float's products take long enough for what is added to them to be read meanwhile; its registers do not last for the
  // branch as well.
  static constexpr bool kAddsReadAhead = sizeof(T) < 4;

 public:
  PUMA_DEVICE RegisterRows(const AdapterArguments& p, const LanePlace<T>& place)
      : steps_(p.padded_channels / kStepColumns) {
    input_.read(p.input, place, 0);
  }

  // The first product's operand of a step.
  PUMA_DEVICE void input(const AdapterArguments& p, const LanePlace<T>& place, int step, Bytes16 (&operand)[2][2]) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
#pragma unroll
      for (int h = 0; h < 2; ++h) operand[q][h] = input_.unit[q][h].as_operand();
    }
    if (step + 1 < steps_) input_.read(p.input, place, (step + 1) * kStepColumns);
  }
  // Once the products of that step have begun.
  PUMA_DEVICE void input_used(const AdapterArguments&, const LanePlace<T>&) {}

  // The saved activation in a group of columns.
  PUMA_DEVICE void mask(const AdapterArguments& p, const LanePlace<T>& place, int group, bool rows_aligned,
                        Bytes16 (&mask)[2]) {
    load_mask<T>(p, place, group, rows_aligned, mask);
  }

  // What is added to the second product: before the first step, ...
  PUMA_DEVICE void begin_adding(const AdapterArguments& p, const LanePlace<T>& place) {
    // There is a step 0. Asked whether there is, the compiler spills registers.
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      if (kAddsReadAhead) read_added(p, place, 0, q);
    }
  }
  // ... before a group's product, after it, and when it has been added.
  PUMA_DEVICE void before_product(const AdapterArguments& p, const LanePlace<T>& place, int step, int q) {
    if (!kAddsReadAhead) residual_.read_group(p.residual, place, step * kStepColumns, q);
  }
  PUMA_DEVICE void after_product(const AdapterArguments& p, const LanePlace<T>& place, int step, int q) {
    if constexpr (!kAddsReadAhead && kHasBranch) branch_.read_group(p.branch, place, step * kStepColumns, q);
  }
  PUMA_DEVICE void added(const AdapterArguments& p, const LanePlace<T>& place, int step, int q) {
    const int next = step + 1;
    if (kAddsReadAhead && next < steps_) read_added(p, place, next * kStepColumns, q);
  }
  // v = residual + branch + factor * v
  PUMA_DEVICE void add(int q, int h, float factor, float (&v)[kElements<T>]) const {
#pragma unroll
    for (int e = 0; e < kElements<T>; ++e) {
      v[e] = residual_.unit[q][h].element(e) + factor * v[e];
      if constexpr (kHasBranch) v[e] += branch_.unit[q][h].element(e);
    }
  }

 private:
  PUMA_DEVICE void read_added(const AdapterArguments& p, const LanePlace<T>& place, int column, int q) {
    residual_.read_group(p.residual, place, column, q);
    if constexpr (kHasBranch) branch_.read_group(p.branch, place, column, q);
  }

  int steps_;
  RowUnits<In, T, kBackward> input_;  // the forward's kernel in front writes no input of the operator
  RowUnits<R, T> residual_;
  RowUnits<B, T> branch_;
};

}  // namespace puma
