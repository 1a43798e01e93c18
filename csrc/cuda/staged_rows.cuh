// What a warp reads of its rows, on the way through shared memory: where products are those of a warpgroup. Each lane
// copies its own units, kRowStages items ahead of use, and nobody waits for anybody. An item is four units of 16 bytes:
// a step of the input, of the residual or of the branch, or one group of its columns where their type is wider than T;
// or two groups of the mask. register_rows.cuh is the other way, with the same functions.
#pragma once

#include "register_rows.cuh"

namespace puma {

inline constexpr int kRowStages = 4;
inline constexpr int kItemUnits = 4;
inline constexpr int kItemBytes = kItemUnits * 16;  // of a lane

template <typename T, typename R, int kWidth, bool kBackward, Branch kBranch>
class StagedRows {
  using In = std::conditional_t<kBackward, R, T>;
  using B = BranchType<T, R, kBranch>;
  template <typename S>
  static constexpr bool kIsWide = sizeof(S) > sizeof(T);
  template <typename S>
  static constexpr int kItemsPerStep = kIsWide<S> ? 2 : 1;
  static constexpr bool kHasBranch = kBranch != Branch::kNone;
  static constexpr int kStepColumns = 2 * kGroup<T>;
  static constexpr bool kMayBeWide = kIsWide<R>;
  static constexpr int kMaskItems = kWidth / kStepColumns;
  static constexpr int kAddedPerStep = kItemsPerStep<R> + (kHasBranch ? kItemsPerStep<B> : 0);

 public:
  PUMA_DEVICE StagedRows(const AdapterArguments& p, const LanePlace<T>& place) {
#pragma unroll
    for (int i = 0; i < kRowStages; ++i) refill(p, place);
  }

  PUMA_DEVICE void input(const AdapterArguments& p, const LanePlace<T>&, int, Bytes16 (&operand)[2][2]) {
    Bytes16 item[kItemsPerStep<In>][kItemUnits];
#pragma unroll
    for (int i = 0; i < kItemsPerStep<In>; ++i) take<In>(p, i, item[i]);
#pragma unroll
    for (int q = 0; q < 2; ++q) {
#pragma unroll
      for (int h = 0; h < 2; ++h) operand[q][h] = units<In>(item[q % kItemsPerStep<In>], q, h).as_operand();
    }
  }
  PUMA_DEVICE void input_used(const AdapterArguments& p, const LanePlace<T>& place) {
#pragma unroll
    for (int i = 0; i < kItemsPerStep<In>; ++i) refill(p, place);
  }

  PUMA_DEVICE void mask(const AdapterArguments& p, const LanePlace<T>& place, int group, bool rows_aligned,
                        Bytes16 (&mask)[2]) {
    if (group % 2 == 0) take<T>(p, 0, residual_);
    if (rows_aligned) {
#pragma unroll
      for (int h = 0; h < 2; ++h) mask[h] = residual_[group % 2 * 2 + h];
    } else {
      load_mask<T>(p, place, group, false, mask);
    }
    if (group % 2 == 1) refill(p, place);
  }

  PUMA_DEVICE void begin_adding(const AdapterArguments&, const LanePlace<T>&) {}
  PUMA_DEVICE void before_product(const AdapterArguments&, const LanePlace<T>&, int, int) {}
  PUMA_DEVICE void after_product(const AdapterArguments& p, const LanePlace<T>&, int, int q) {
    const bool takes_residual = q == 0 || kIsWide<R>;
    if (takes_residual) take<R>(p, 0, residual_);
    if (kHasBranch && (q == 0 || kIsWide<B>)) take<B>(p, takes_residual ? 1 : 0, branch_);
  }
  PUMA_DEVICE void added(const AdapterArguments& p, const LanePlace<T>& place, int, int q) {
    if (q == 0 || kIsWide<R>) refill(p, place);
    if (kHasBranch && (q == 0 || kIsWide<B>)) refill(p, place);
  }
  PUMA_DEVICE void add(int q, int h, float factor, float (&v)[kElements<T>]) const {
    const Stored<R, T> residual = units<R>(residual_, q, h);
    const Stored<B, T> branch = units<B>(branch_, q, h);
#pragma unroll
    for (int e = 0; e < kElements<T>; ++e) {
      v[e] = residual.element(e) + factor * v[e];
      if constexpr (kHasBranch) v[e] += branch.element(e);
    }
  }

 private:
  // Row h's units in a group of columns.
  template <typename S>
  PUMA_DEVICE static Stored<S, T> units(const Bytes16 (&item)[kItemUnits], int q, int h) {
    Stored<S, T> stored;
#pragma unroll
    for (int i = 0; i < Stored<S, T>::kUnits; ++i) stored.unit[i] = item[kIsWide<S> ? 2 * h + i : 2 * q + h];
    return stored;
  }

  PUMA_DEVICE Bytes16* slot(const AdapterArguments& p, int stage) const {
    auto* slots = reinterpret_cast<Bytes16*>(dev::shared_memory() + p.row_stages_at);
    return slots + stage * kItemUnits * dev::threads() + dev::thread();
  }
  // The next item but `skip`, once it is there. A wide one has been copied by the lanes that share its rows.
  template <typename S>
  PUMA_DEVICE void take(const AdapterArguments& p, int skip, Bytes16 (&item)[kItemUnits]) const {
    dev::copy_async_wait(kRowStages - 1 - skip);
    if (kIsWide<S>) dev::sync_warp();
    const int stage = stage_ + skip;
    const Bytes16* from = slot(p, stage < kRowStages ? stage : stage - kRowStages);
#pragma unroll
    for (int i = 0; i < kItemUnits; ++i) item[i] = dev::load_shared(from + i * dev::threads());
  }
  // Leaves the next item, whose units have been used, and begins to read another one into its place.
  PUMA_DEVICE void refill(const AdapterArguments& p, const LanePlace<T>& place) {
    if (kMayBeWide) dev::sync_warp();  // all lanes have read what lies there
    Bytes16* to = slot(p, stage_);
    const int input_items = p.padded_channels / kStepColumns * kItemsPerStep<In>;
    if (item_ < input_items) {
      copy<In>(p.input, place, to, item_ / kItemsPerStep<In>, item_ % kItemsPerStep<In>);
    } else if constexpr (kBackward) {
      if (item_ - input_items < kMaskItems) copy_mask(p, place, to, item_ - input_items);
    } else {
      const int item = item_ - input_items, step = item / kAddedPerStep, in_step = item % kAddedPerStep;
      if (step < p.padded_channels / kStepColumns) {
        const int part = kHasBranch ? in_step / 2 : in_step;
        if (!kHasBranch || in_step % 2 == 0) {
          copy<R>(p.residual, place, to, step, part);
        } else {
          copy<B>(p.branch, place, to, step, part);
        }
      }
    }
    dev::copy_async_commit();  // also when empty: waiting counts groups
    ++item_;
    stage_ = stage_ + 1 == kRowStages ? 0 : stage_ + 1;
  }

  // Columns behind the last one are zeros: their weights are, but not what lies there.
  template <typename S>
  PUMA_DEVICE static void copy(const void* rows, const LanePlace<T>& place, Bytes16* to, int step, int part) {
    const int step_column = step * kStepColumns;
    if constexpr (!kIsWide<S>) {
#pragma unroll
      for (int i = 0; i < kItemUnits; ++i) {
        const int column = step_column + i / 2 * kGroup<T>;
        const S* unit = static_cast<const S*>(rows) + (place.offset[i % 2] + column);
        dev::copy_async16(to + i * dev::threads(), unit, column < place.columns_left);
      }
    } else {
      // A lane's two units of a row lie side by side. All lanes' first ones would be every other 16 bytes, half of each
      // 32 that memory hands out: so the four lanes of a row copy first the lower half of its group, then the upper
      // one, each to the lane whose unit it is.
      const int lane = dev::lane() % 4;
#pragma unroll
      for (int i = 0; i < kItemUnits; ++i) {
        const int h = i / 2, half = i % 2;
        const int column = step_column + part * kGroup<T> + half * kGroup<T> / 2 - lane * kElements<S>;  // from its own
        const S* unit = static_cast<const S*>(rows) + (place.offset[h] + column);
        Bytes16* there = to + (2 * h + lane % 2) * dev::threads() + (2 * half + lane / 2 - lane);
        dev::copy_async16(there, unit, column < place.columns_left);
      }
    }
  }
  // Zeros where it cannot be copied so, see mask().
  PUMA_DEVICE static void copy_mask(const AdapterArguments& p, const LanePlace<T>& place, Bytes16* to, int item) {
#pragma unroll
    for (int i = 0; i < kItemUnits; ++i) {
      const int column = (2 * item + i / 2) * kGroup<T> + dev::lane() % 4 * kElements<T>;
      const T* row = static_cast<const T*>(p.mask) + static_cast<int64_t>(place.compact() + 8 * (i % 2)) * p.width;
      const bool inside = p.width % kElements<T> == 0 && place.valid(i % 2) && column < p.width;
      dev::copy_async16(to + i * dev::threads(), inside ? row + column : static_cast<const T*>(p.mask), inside);
    }
  }

  int item_ = 0;   // the next one to be read
  int stage_ = 0;  // where it goes, which is where the one lies that is used next
  Bytes16 residual_[kItemUnits];  // or the mask
  Bytes16 branch_[kItemUnits];
};

}  // namespace puma
