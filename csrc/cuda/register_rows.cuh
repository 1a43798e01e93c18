// What a warp reads of its rows, straight into registers, a step or two ahead of use. staged_rows.cuh is the other way,
// with the same functions.
#pragma once

#include "row_units.cuh"

namespace puma {

// What a lane reads of its two rows in a step: units (group q, row h). S: type in memory; kWritten: the kernel in front
// may have written it.
template <typename S, typename T, bool kWritten = false>
struct StepUnits {
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
  static constexpr int kStepColumns = PackedWeights<T, kWidth>::kStepColumns;
  // float's products take long enough for what is added to them to be read meanwhile; its registers do not last for the
  // branch as well.
  static constexpr bool kAddsReadAhead = sizeof(T) < 4;
  // Groups of the mask that are read together.
  static constexpr int kMaskGroups = uses_warpgroups<T> ? kWidth / kGroup<T> : 1;

 public:
  // Steps of the input that are read ahead, each in a slot: as many as the registers allow.
  static constexpr int kInputSlots = uses_warpgroups<T> && sizeof(In) == 2 ? 2 : 1;

  PUMA_DEVICE RegisterRows(const AdapterArguments& p, const LanePlace<T>& place)
      : steps_(p.padded_channels / kStepColumns) {
#pragma unroll
    for (int slot = 0; slot < kInputSlots; ++slot) {
      // There is a step 0. Asked whether there is, the compiler spills registers (for sm_80).
      if (slot == 0 || slot < steps_) input_[slot].read(p.input, place, slot * kStepColumns);
    }
  }

  // The first product's operand of a step, whose slot is step % kInputSlots.
  PUMA_DEVICE void input(const AdapterArguments& p, const LanePlace<T>& place, int step, int slot,
                         Bytes16 (&operand)[2][2]) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
#pragma unroll
      for (int h = 0; h < 2; ++h) operand[q][h] = input_[slot].unit[q][h].as_operand();
    }
    if (step + kInputSlots < steps_) input_[slot].read(p.input, place, (step + kInputSlots) * kStepColumns);
  }
  // Once the products of that step have begun.
  PUMA_DEVICE void input_used(const AdapterArguments&, const LanePlace<T>&) {}

  // The saved activation in a group of columns.
  PUMA_DEVICE void mask(const AdapterArguments& p, const LanePlace<T>& place, int group, bool rows_aligned,
                        Bytes16 (&mask)[2]) {
    if (group % kMaskGroups == 0) {
#pragma unroll
      for (int i = 0; i < kMaskGroups; ++i) load_mask<T>(p, place, group + i, rows_aligned, mask_[i]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) mask[h] = mask_[group % kMaskGroups][h];
  }

  // What is added to the second product: before the first step, ...
  PUMA_DEVICE void begin_adding(const AdapterArguments& p, const LanePlace<T>& place) {
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
  StepUnits<In, T, kBackward> input_[kInputSlots];  // the forward's kernel in front writes no input of the operator
  Bytes16 mask_[kMaskGroups][2];
  StepUnits<R, T> residual_;
  StepUnits<B, T> branch_;
};

}  // namespace puma
