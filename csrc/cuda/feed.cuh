// What the adapter's warps multiply arrives in shared memory through a ring of stages, filled ahead of use. A stage holds
// one step of the packed weights, for all warps, and of each lane the units of activations it will take in that step:
// a lane fetches for itself alone, so that these need neither a barrier nor a conversion of layout. Step by step, a
// stage serves the first product (its input) or the second (residual and branch, which are added to it).
#pragma once

#include "dropped.cuh"
#include "prepare.cuh"

namespace puma {

inline constexpr int kMaxStages = 6;

// Units of one lane in a stage. branch_units: 0 without a branch, else units per kElements<T> elements of it.
template <typename T, typename R, bool kBackward>
inline constexpr int lane_units(int branch_units) {
  constexpr int kResidualUnits = static_cast<int>(sizeof(R) / sizeof(T));
  if (kBackward) return 4 * kResidualUnits;
  return 4 * (kResidualUnits + branch_units);
}

// Which rows the warps of a block work on: in each pass a group of kTogether warps has a tile of 16 rows per warp, or
// none. Rows of kept samples are fewer than 2^31 (sizes.h).
template <int kTogether>
struct Schedule {
  int slots;  // groups of all blocks
  int kept;
  int kept_rows;
  int tiles;
  int steps;       // of one product
  int used_steps;  // per pass

  PUMA_DEVICE Schedule(const AdapterArguments& p, int step_columns)
      : slots(static_cast<int>(dev::blocks()) * (dev::threads() / (32 * kTogether))),
        kept(p.kept[0]),
        kept_rows(kept * p.tokens_per_sample),
        tiles(static_cast<int>((static_cast<unsigned>(kept_rows) + kTileRows * kTogether - 1) / (kTileRows * kTogether))),
        steps(static_cast<int>(p.padded_channels / step_columns)),
        used_steps(p.output != nullptr ? 2 * steps : steps) {}

  // Neighbouring tiles go to different multiprocessors, so that each gets its share of a remainder.
  PUMA_DEVICE int tile(int pass) const {
    return pass * slots + dev::warp() / kTogether * static_cast<int>(dev::blocks()) + static_cast<int>(dev::block());
  }
  // The compacted row that this warp's tile begins with.
  PUMA_DEVICE int first_row(int pass) const { return (tile(pass) * kTogether + dev::warp() % kTogether) * kTileRows; }
  // Passes in which this warp has a tile, and those in which the block's first one has: no other has more.
  PUMA_DEVICE int passes() const { return passes_from(tile(0)); }
  PUMA_DEVICE int block_passes() const { return passes_from(static_cast<int>(dev::block())); }
  // Threads of the block whose warps have a tile: the first ones.
  PUMA_DEVICE int active_threads(int pass) const {
    const int left = tiles - pass * slots - static_cast<int>(dev::block());
    const int blocks = static_cast<int>(dev::blocks());
    const int groups = left > 0 ? (left + blocks - 1) / blocks : 0;
    return min_of(groups * 32 * kTogether, dev::threads());
  }

 private:
  PUMA_DEVICE static int min_of(int a, int b) { return a < b ? a : b; }
  PUMA_DEVICE int passes_from(int first) const { return first < tiles ? (tiles - first + slots - 1) / slots : 0; }
};

// The compacted row a lane works on, and where its sample lies.
struct RowOfLane {
  bool valid;
  int compact;    // row among the kept ones
  int64_t full;   // row among all
  float factor;

  PUMA_DEVICE RowOfLane(const AdapterArguments& p, int row, int kept_rows)
      : valid(row < kept_rows), compact(row), full(0), factor(0.0f) {
    if (!valid) return;
    const int rank = row / p.tokens_per_sample;
    const int64_t sample = p.order[rank];
    full = sample * p.tokens_per_sample + (row - rank * p.tokens_per_sample);
    factor = p.gate == nullptr ? p.scale : p.gate[sample] * p.scale;
  }
};

// One step of a warp's tile: a lane has units (group q, row h) of its row lane / 4 + 8 h.
template <typename T, typename R, int kWidth, bool kBackward>
class Feed {
 public:
  using Packed = PackedWeights<T, kWidth>;
  using In = std::conditional_t<kBackward, R, T>;
  using Plan = Schedule<kWarpsTogether<T>>;

  PUMA_DEVICE Feed(const AdapterArguments& p, const Plan& schedule)
      : p_(p), schedule_(schedule), stage_bytes_(Packed::kStepBytes + dev::threads() * p.lane_units * 16),
        passes_(schedule.block_passes()), threads_(schedule.active_threads(0)) {
    locate();
    for (int i = 0; i < p.stages - 1; ++i) issue();
  }

  // This lane's first column in group 0 of step 0.
  PUMA_DEVICE static int lane_column() { return dev::lane() % 4 * kElements<T>; }

  // Makes the next step's stage available to the warps that have a tile, which all call this.
  PUMA_DEVICE void next() {
    dev::copy_async_wait(p_.stages - 2);
    if constexpr (uses_warpgroups<T>) dev::publish_operands();
    dev::sync_first_threads(threads_);  // this step has arrived for all, and all have left the stage filled next
    issue();
    used_ = dev::shared_memory() + use_;
    use_ = after(use_);
  }
  PUMA_DEVICE const Bytes16* weights() const { return reinterpret_cast<const Bytes16*>(used_); }
  // This lane's units, each 32 units behind the one before.
  PUMA_DEVICE const Bytes16* units() const { return units_of(used_); }

  // After the last step of a pass: warps without a tile in the next one leave.
  PUMA_DEVICE void end_pass() {
    if (++pass_used_ == passes_) return;
    const int stay = schedule_.active_threads(pass_used_);
    if (stay == threads_) return;
    if (dev::thread() >= stay) dev::copy_async_wait(0);  // what it has fetched for the others
    dev::sync_first_threads(threads_);
    threads_ = stay;
  }

  // First unit of the branch's (q, h) = (i / 2, i % 2): behind the residual's.
  PUMA_DEVICE static int branch_unit(const AdapterArguments& p, int i) {
    constexpr int kUnits = Stored<R, T>::kUnits;
    return 4 * kUnits + (BranchUnit<T, R>::is_narrow(p) ? i : i * kUnits);
  }

 private:
  PUMA_DEVICE const Bytes16* units_of(const char* stage) const {
    const int lanes_first = dev::warp() * 32 * p_.lane_units + dev::lane();
    return reinterpret_cast<const Bytes16*>(stage + Packed::kStepBytes) + lanes_first;
  }
  PUMA_DEVICE int after(int stage) const { return stage + stage_bytes_ < p_.stages * stage_bytes_ ? stage + stage_bytes_ : 0; }

  PUMA_DEVICE void locate() {
    const int row = schedule_.first_row(pass_) + dev::lane() / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const RowOfLane place(p_, row + 8 * h, schedule_.kept_rows);
      valid_[h] = place.valid;
      offset_[h] = place.full * p_.channels + lane_column();
    }
  }

  PUMA_DEVICE void issue() {
    if (pass_ < passes_) {
      char* stage = dev::shared_memory() + fill_;
      const bool second = step_ >= schedule_.steps;
      const int column = (second ? step_ - schedule_.steps : step_) * Packed::kStepColumns;
      auto* units = const_cast<Bytes16*>(units_of(stage));
#pragma unroll
      for (int q = 0; q < 2; ++q) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const bool inside = valid_[h] && column + q * kGroup<T> + lane_column() < p_.channels;
          const int64_t offset = inside ? offset_[h] + column + q * kGroup<T> : 0;
          const int i = 2 * q + h;
          if (!second) {
            Stored<In, T>::copy_async(units + 32 * i * Stored<In, T>::kUnits, static_cast<const In*>(p_.input) + offset,
                                      inside);
          } else if constexpr (!kBackward) {
            Stored<R, T>::copy_async(units + 32 * i * Stored<R, T>::kUnits, static_cast<const R*>(p_.residual) + offset,
                                     inside);
            if (p_.branch != nullptr) {
              BranchUnit<T, R>::copy_async(p_, units + 32 * branch_unit(p_, i), offset, inside);
            }
          }
        }
      }
      const Bytes16* source = p_.weights + step_ * Packed::kUnitsPerStep;
#pragma unroll 4
      for (int i = dev::thread(); i < Packed::kUnitsPerStep; i += threads_) {
        dev::copy_async16(reinterpret_cast<Bytes16*>(stage) + i, source + i);
      }
      fill_ = after(fill_);
      if (++step_ == schedule_.used_steps) {
        step_ = 0;
        if (++pass_ < passes_) locate();
      }
    }
    dev::copy_async_commit();  // also when empty: waiting counts groups
  }

  const AdapterArguments& p_;
  const Plan& schedule_;
  const int stage_bytes_;
  const int passes_;  // of the block
  const char* used_ = nullptr;
  int threads_;  // that take part in this pass
  int use_ = 0;  // stage of the next step: where it begins
  int pass_used_ = 0;
  // What is fetched next: step_ of pass_, into the stage at fill_.
  int fill_ = 0;
  int step_ = 0;
  int pass_ = 0;
  bool valid_[2];
  int64_t offset_[2];
};

}  // namespace puma
