// What a warp reads of its rows, on the way through shared memory: each lane copies its own units, some items ahead of
// use, and nobody waits for anybody. An item is four units of 16 bytes: a step of the input, of the residual or of the
// branch, or two groups of the mask. It takes no registers to have many under way, which is what it takes to keep the
// memory busy. register_rows.cuh is the other way, with the same functions.
#pragma once

#include "row_units.cuh"

namespace puma {

inline constexpr int kRowStages = 4;
inline constexpr int kItemUnits = 4;
inline constexpr int kItemBytes = kItemUnits * 16;  // of a lane
static_assert(kRowStages >= 2 && kRowStages <= 5);  // two are taken at once; copy_async_wait

// A residual stream wider than T has twice the items, and on an H200 it was slower this way.
template <typename T, typename R>
inline constexpr bool kMayStageRows = kMayUseWarpgroups<T> && sizeof(R) == sizeof(T);
template <typename T, typename R>
inline constexpr bool stages_rows = dev::kHasWarpgroups && kMayStageRows<T, R>;

template <typename T, int kWidth, bool kBackward, Branch kBranch>
class StagedRows {
  static constexpr bool kHasBranch = kBranch != Branch::kNone;
  static constexpr int kStepColumns = PackedWeights<T, kWidth>::kStepColumns;
  static constexpr int kMaskItems = kWidth / kStepColumns;

 public:
  static constexpr int kInputSlots = 1;

  PUMA_DEVICE StagedRows(const AdapterArguments& p, const LanePlace<T>& place) {
#pragma unroll
    for (int i = 0; i < kRowStages; ++i) refill(p, place);
  }

  PUMA_DEVICE void input(const AdapterArguments& p, const LanePlace<T>&, int, int, Bytes16 (&operand)[2][2]) {
    take(p, 0, item_);
#pragma unroll
    for (int q = 0; q < 2; ++q) {
#pragma unroll
      for (int h = 0; h < 2; ++h) operand[q][h] = item_[2 * q + h];
    }
  }
  PUMA_DEVICE void input_used(const AdapterArguments& p, const LanePlace<T>& place) { refill(p, place); }

  PUMA_DEVICE void mask(const AdapterArguments& p, const LanePlace<T>& place, int group, bool rows_aligned,
                        Bytes16 (&mask)[2]) {
    if (group % 2 == 0) take(p, 0, item_);
    if (rows_aligned) {
#pragma unroll
      for (int h = 0; h < 2; ++h) mask[h] = item_[group % 2 * 2 + h];
    } else {
      load_mask<T>(p, place, group, false, mask);
    }
    if (group % 2 == 1) refill(p, place);
  }

  PUMA_DEVICE void begin_adding(const AdapterArguments&, const LanePlace<T>&) {}
  PUMA_DEVICE void before_product(const AdapterArguments&, const LanePlace<T>&, int, int) {}
  PUMA_DEVICE void after_product(const AdapterArguments& p, const LanePlace<T>&, int, int q) {
    if (q == 1) return;  // has come with group 0
    take(p, 0, item_);
    if constexpr (kHasBranch) take(p, 1, branch_);
  }
  PUMA_DEVICE void added(const AdapterArguments& p, const LanePlace<T>& place, int, int q) {
    if (q == 1) return;
    refill(p, place);  // group 1's units are in registers
    if constexpr (kHasBranch) refill(p, place);
  }
  PUMA_DEVICE void add(int q, int h, float factor, float (&v)[kElements<T>]) const {
#pragma unroll
    for (int e = 0; e < kElements<T>; ++e) {
      v[e] = unit_element<T>(item_[2 * q + h], e) + factor * v[e];
      if constexpr (kHasBranch) v[e] += unit_element<T>(branch_[2 * q + h], e);
    }
  }

 private:
  PUMA_DEVICE Bytes16* slot(const AdapterArguments& p, int stage) const {
    auto* slots = reinterpret_cast<Bytes16*>(dev::shared_memory() + p.row_stages_at);
    return slots + stage * kItemUnits * dev::threads() + dev::thread();
  }
  // The next item, or the one behind it (skip = 1), once it is there.
  PUMA_DEVICE void take(const AdapterArguments& p, int skip, Bytes16 (&item)[kItemUnits]) const {
    dev::copy_async_wait(kRowStages - 1 - skip);
    const int stage = stage_ + skip;
    const Bytes16* from = slot(p, stage < kRowStages ? stage : stage - kRowStages);
#pragma unroll
    for (int i = 0; i < kItemUnits; ++i) item[i] = dev::load_shared(from + i * dev::threads());
  }
  // Leaves the next item, whose units have been used, and begins to read another one into its place.
  PUMA_DEVICE void refill(const AdapterArguments& p, const LanePlace<T>& place) {
    Bytes16* to = slot(p, stage_);
    const int steps = p.padded_channels / kStepColumns;
    if (next_ < steps) {
      copy(p.input, place, to, next_);
    } else if constexpr (kBackward) {
      if (next_ - steps < kMaskItems) copy_mask(p, place, to, next_ - steps);
    } else {
      constexpr int kPerStep = kHasBranch ? 2 : 1;
      const int added = next_ - steps;
      if (added < kPerStep * steps) {
        copy(kHasBranch && added % 2 == 1 ? p.branch : p.residual, place, to, added / kPerStep);
      }
    }
    dev::copy_async_commit();  // also when empty: waiting counts groups
    ++next_;
    stage_ = stage_ + 1 == kRowStages ? 0 : stage_ + 1;
  }

  // Columns behind the last one are zeros: their weights are, but not what lies there.
  PUMA_DEVICE static void copy(const void* rows, const LanePlace<T>& place, Bytes16* to, int step) {
#pragma unroll
    for (int i = 0; i < kItemUnits; ++i) {
      const int column = step * kStepColumns + i / 2 * kGroup<T>;
      const T* unit = static_cast<const T*>(rows) + (place.offset[i % 2] + column);
      dev::copy_async16(to + i * dev::threads(), unit, column < place.columns_left);
    }
  }
  // Zeros where rows are not whole units, see mask().
  PUMA_DEVICE static void copy_mask(const AdapterArguments& p, const LanePlace<T>& place, Bytes16* to, int item) {
#pragma unroll
    for (int i = 0; i < kItemUnits; ++i) {
      const int column = (2 * item + i / 2) * kGroup<T> + dev::lane() % 4 * kElements<T>;
      const T* row = static_cast<const T*>(p.mask) + static_cast<int64_t>(place.compact() + 8 * (i % 2)) * p.width;
      const bool inside = p.width % kElements<T> == 0 && place.valid(i % 2) && column < p.width;
      dev::copy_async16(to + i * dev::threads(), inside ? row + column : static_cast<const T*>(p.mask), inside);
    }
  }

  int next_ = 0;   // the item that is read next
  int stage_ = 0;  // where it goes, which is where the one lies that is used next
  Bytes16 item_[kItemUnits];    // in use
  Bytes16 branch_[kItemUnits];  // the one that belongs to the residual's
};

}  // namespace puma
