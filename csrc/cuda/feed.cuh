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

// Which rows the warps of a block work on: in each pass a warp has one tile of 16 rows, or none.
struct Schedule {
  int64_t slots;  // warps of all blocks
  int64_t kept;
  int64_t kept_rows;
  int64_t tiles;
  int steps;       // of one product
  int used_steps;  // per pass

  PUMA_DEVICE Schedule(const AdapterArguments& p, int step_columns)
      : slots(dev::blocks() * (dev::threads() / 32)),
        kept(p.kept[0]),
        kept_rows(kept * p.tokens_per_sample),
        tiles((kept_rows + kTileRows - 1) / kTileRows),
        steps(static_cast<int>(p.padded_channels / step_columns)),
        used_steps(p.output != nullptr ? 2 * steps : steps) {}

  // Neighbouring tiles go to different multiprocessors, so that each gets its share of a remainder.
  PUMA_DEVICE int64_t tile(int64_t pass) const { return pass * slots + dev::warp() * dev::blocks() + dev::block(); }
  // Passes in which this warp has a tile.
  PUMA_DEVICE int64_t passes() const {
    const int64_t left = tiles - tile(0);
    return left > 0 ? (left + slots - 1) / slots : 0;
  }
  // Passes in which the block's first warp has one: no other has more.
  PUMA_DEVICE int64_t block_passes() const {
    const int64_t left = tiles - dev::block();
    return left > 0 ? (left + slots - 1) / slots : 0;
  }
  // Threads of the block whose warps have a tile: the first ones.
  PUMA_DEVICE int active_threads(int64_t pass) const {
    const int64_t left = tiles - pass * slots - dev::block();
    const int64_t warps = left > 0 ? (left + dev::blocks() - 1) / dev::blocks() : 0;
    return 32 * warps < dev::threads() ? static_cast<int>(32 * warps) : dev::threads();
  }
};

// The compacted row a lane works on, and where its sample lies.
struct RowOfLane {
  bool valid = false;
  int64_t compact = 0;  // row among the kept ones
  int64_t full = 0;     // row among all
  float factor = 0.0f;

  PUMA_DEVICE void locate(const AdapterArguments& p, int64_t row, int64_t kept_rows) {
    valid = row < kept_rows;
    full = 0;  // a row that exists, if none is wanted
    if (!valid) return;
    const int64_t rank = row / p.tokens_per_sample;
    const int64_t sample = p.order[rank];
    compact = row;
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

  PUMA_DEVICE Feed(const AdapterArguments& p, const Schedule& schedule)
      : p_(p), schedule_(schedule), stage_bytes_(Packed::kStepBytes + dev::threads() * p.lane_units * 16),
        passes_(schedule.block_passes()), threads_(schedule.active_threads(0)) {
    locate();
    for (int i = 0; i < p.stages - 1; ++i) issue();
  }

  PUMA_DEVICE static int column(int step, int q) {
    return step * Packed::kStepColumns + q * kGroup<T> + dev::lane() % 4 * kElements<T>;
  }

  // Makes the next step's stage available to the warps that have a tile, which all call this.
  PUMA_DEVICE void next() {
    dev::copy_async_wait(p_.stages - 2);
    dev::sync_first_threads(threads_);  // this step has arrived for all, and all have left the stage filled next
    issue();
    used_ = dev::shared_memory() + use_ * stage_bytes_;
    if (++use_ == p_.stages) use_ = 0;
  }
  PUMA_DEVICE const Bytes16* weights() const { return reinterpret_cast<const Bytes16*>(used_); }
  // This lane's units, each 32 units behind the one before.
  PUMA_DEVICE const Bytes16* units(int first) const { return units_of(used_, first); }

  // After the last step of a pass: warps without a tile in the next one leave.
  PUMA_DEVICE void end_pass() {
    if (++pass_used_ == passes_) return;
    const int stay = schedule_.active_threads(pass_used_);
    if (stay == threads_) return;
    if (dev::thread() >= stay) dev::copy_async_wait(0);  // what it has fetched for the others
    dev::sync_first_threads(threads_);
    threads_ = stay;
  }

 private:
  PUMA_DEVICE const Bytes16* units_of(const char* stage, int first) const {
    const int lanes_first = dev::warp() * 32 * p_.lane_units + first * 32 + dev::lane();
    return reinterpret_cast<const Bytes16*>(stage + Packed::kStepBytes) + lanes_first;
  }
  PUMA_DEVICE void locate() {
    const int64_t row = schedule_.tile(pass_) * kTileRows + dev::lane() / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      RowOfLane place;
      place.locate(p_, row + 8 * h, schedule_.kept_rows);
      valid_[h] = place.valid;
      offset_[h] = place.full * p_.channels;
    }
  }

  PUMA_DEVICE void issue() {
    if (pass_ < passes_) {
      char* stage = dev::shared_memory() + fill_ * stage_bytes_;
      const Bytes16* source = p_.weights + static_cast<int64_t>(step_) * Packed::kUnitsPerStep;
      auto* weights = reinterpret_cast<Bytes16*>(stage);
      for (int i = dev::thread(); i < Packed::kUnitsPerStep; i += threads_) {
        dev::copy_async16(weights + i, source + i);
      }
      auto* units = const_cast<Bytes16*>(units_of(stage, 0));
      const bool second = step_ >= schedule_.steps;
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const int c = column(second ? step_ - schedule_.steps : step_, q);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const bool inside = valid_[h] && c < p_.channels;
          const int64_t offset = inside ? offset_[h] + c : 0;
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
      if (++fill_ == p_.stages) fill_ = 0;
      if (++step_ == schedule_.used_steps) {
        step_ = 0;
        ++pass_;
        if (pass_ < passes_) locate();
      }
    }
    dev::copy_async_commit();  // also when empty: waiting counts groups
  }

 public:
  // First unit of the branch's (q, h) = (i / 2, i % 2): behind the residual's.
  PUMA_DEVICE static int branch_unit(const AdapterArguments& p, int i) {
    constexpr int kUnits = Stored<R, T>::kUnits;
    return 4 * kUnits + (BranchUnit<T, R>::is_narrow(p) ? i : i * kUnits);
  }

 private:
  const AdapterArguments& p_;
  const Schedule& schedule_;
  const int stage_bytes_;
  const int64_t passes_;  // of the block
  const char* used_ = nullptr;
  int threads_;  // that take part in this pass
  int use_ = 0;  // stage of the next step
  int64_t pass_used_ = 0;
  // What is fetched next: step_ of pass_, into stage fill_.
  int fill_ = 0;
  int step_ = 0;
  int64_t pass_ = 0;
  bool valid_[2];
  int64_t offset_[2];
};

}  // namespace puma
