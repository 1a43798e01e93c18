// Brings the adapter's packed weights into shared memory, step by step, in the order in which they are used: once, if
// all fit, else again in every pass through a ring of kRingStages steps.
#pragma once

#include "prepare.cuh"
#include "schedule.cuh"

namespace puma {

inline constexpr int kCopiedRingStages = 6;
inline constexpr int kBulkRingStages = 8;  // beside staged rows as many as Hopper has room for

// In front of the weights in shared memory: what bulk copies need.
struct AdapterControl {
  int32_t next_step;  // of a ring: which is fetched next
  int32_t unused[3];
  dev::BulkBarrier arrived[62];  // of the step in each stage
};
inline constexpr int kControlBytes = 512;
static_assert(sizeof(AdapterControl) == kControlBytes);

PUMA_DEVICE AdapterControl* adapter_control() { return reinterpret_cast<AdapterControl*>(dev::shared_memory()); }

// Common to both kinds of stream. Warps without a tile take no part.
template <typename T, int kWidth>
class WeightRing {
 public:
  using Packed = PackedWeights<T, kWidth>;
  using Plan = Schedule<kWarpsTogether<T>>;
  static constexpr int kRingStages = uses_warpgroups<T> ? kBulkRingStages : kCopiedRingStages;

  // Of one product, and of a pass.
  PUMA_DEVICE static int steps(const AdapterArguments& p) { return p.padded_channels / Packed::kStepColumns; }
  PUMA_DEVICE static int used_steps(const AdapterArguments& p) { return p.output != nullptr ? 2 * steps(p) : steps(p); }

 protected:
  PUMA_DEVICE explicit WeightRing(const Plan& schedule) : threads_(schedule.active_threads(0)) {}

  PUMA_DEVICE static Bytes16* stage(int index) {
    return reinterpret_cast<Bytes16*>(dev::shared_memory() + kControlBytes) + index * Packed::kUnitsPerStep;
  }
  PUMA_DEVICE static const Bytes16* source(const AdapterArguments& p, int step) {
    return p.weights + step * Packed::kUnitsPerStep;
  }
  // The stage that was used before stage `use`, and is filled next.
  PUMA_DEVICE static int stage_before(int use) { return use == 0 ? kRingStages - 1 : use - 1; }
  // In a ring, after the last step of a pass: warps without a tile in the next pass leave.
  template <typename BeforeLeaving>
  PUMA_DEVICE void leave_or_stay(const AdapterArguments& p, int pass, const BeforeLeaving& before_leaving) {
    const int stay = Plan(p).active_threads(pass + 1);
    if (stay == threads_ || stay == 0) return;
    if (dev::thread() >= stay) before_leaving();
    dev::sync_first_threads(threads_);
    threads_ = stay;
  }

  int threads_;  // that take part in this pass
  int use_ = 0;  // stage of the next step
};

// By asynchronous copies of 16 bytes, which all threads issue.
template <typename T, int kWidth>
class CopiedWeights : public WeightRing<T, kWidth> {
  using Ring = WeightRing<T, kWidth>;
  using Ring::threads_, Ring::use_, Ring::kRingStages;

 public:
  using typename Ring::Plan;

  PUMA_DEVICE static void set_up(const AdapterArguments&) {}
  PUMA_DEVICE CopiedWeights(const AdapterArguments& p, const Plan& schedule)
      : Ring(schedule), left_(p.resident ? 1 : schedule.block_passes() * Ring::used_steps(p)) {
    if (p.resident) {
      copy(p, 0, 0, Ring::steps(p));
      dev::copy_async_commit();
      copy(p, Ring::steps(p), Ring::steps(p), Ring::used_steps(p) - Ring::steps(p));
      dev::copy_async_commit();
    } else {
      for (int i = 0; i < kRingStages - 1; ++i) issue(p, i);
    }
  }

  // The weights of the next step. Called by all warps that have a tile.
  PUMA_DEVICE const Bytes16* next(const AdapterArguments& p) {
    const int index = use_++;
    if (p.resident) {
      if (left_ > 0 && (index == 0 || index == Ring::steps(p))) {
        dev::copy_async_wait(index == 0 ? 1 : 0);
        dev::sync_first_threads(threads_);
      }
      if (use_ == Ring::used_steps(p)) {
        use_ = 0;
        left_ = 0;
      }
    } else {
      dev::copy_async_wait(kRingStages - 2);
      dev::sync_first_threads(threads_);  // this step has arrived for all, and all have left the stage filled next
      issue(p, Ring::stage_before(index));
      if (use_ == kRingStages) use_ = 0;
    }
    return Ring::stage(index);
  }

  PUMA_DEVICE void end_pass(const AdapterArguments& p, int pass) {
    if (p.resident) return;
    this->leave_or_stay(p, pass, [] { dev::copy_async_wait(0); });  // what it has fetched for the others
  }

 private:
  PUMA_DEVICE void copy(const AdapterArguments& p, int index, int step, int count) const {
    for (int i = dev::thread(); i < count * Ring::Packed::kUnitsPerStep; i += threads_) {
      dev::copy_async16(Ring::stage(index) + i, Ring::source(p, step) + i);
    }
  }
  PUMA_DEVICE void issue(const AdapterArguments& p, int fill) {
    if (left_ > 0) {
      copy(p, fill, step_, 1);
      --left_;
      if (++step_ == Ring::used_steps(p)) step_ = 0;
    }
    dev::copy_async_commit();  // also when empty: waiting counts groups
  }

  int left_;      // in a ring: steps to be fetched; else: passes whose steps may not have arrived yet
  int step_ = 0;  // in a ring: which is fetched next
};

// By bulk copies, of a step each, which one thread issues. Where nothing is left to be fetched the warps meet in no
// barrier: each waits for the steps it uses. A ring has fewer stages than a pass has steps: else all would be resident.
template <typename T, int kWidth>
class BulkWeights : public WeightRing<T, kWidth> {
  using Ring = WeightRing<T, kWidth>;
  using Ring::threads_, Ring::use_, Ring::kRingStages;

 public:
  using typename Ring::Plan;

  // By all threads, in front of a barrier of the block.
  PUMA_DEVICE static void set_up(const AdapterArguments& p) {
    const int stages = p.resident ? Ring::used_steps(p) : kRingStages;
    if (dev::thread() < stages) {
      dev::bulk_barrier_init(adapter_control()->arrived + dev::thread());
      dev::bulk_barriers_are_set_up();
    }
  }
  PUMA_DEVICE BulkWeights(const AdapterArguments& p, const Plan& schedule)
      : Ring(schedule), left_(p.resident ? 0 : schedule.block_passes() * Ring::used_steps(p) - (kRingStages - 1)) {
    if (dev::thread() != 0) return;
    dev::see_ordinary_writes();
    for (int i = 0; i < (p.resident ? Ring::used_steps(p) : kRingStages - 1); ++i) fetch(p, i, i);
    if (!p.resident) dev::store_shared(&adapter_control()->next_step, kRingStages - 1);
  }

  PUMA_DEVICE const Bytes16* next(const AdapterArguments& p) {
    const int index = use_++;
    if (left_ > 0) {
      --left_;
      dev::sync_first_threads(threads_);  // all have left the stage filled next
      if (dev::thread() == 0) fetch_next(p, Ring::stage_before(index));
    }
    dev::bulk_wait(adapter_control()->arrived + index, parity_);
    if (use_ == (p.resident ? Ring::used_steps(p) : kRingStages)) {
      use_ = 0;
      if (!p.resident) parity_ ^= 1;
    }
    return Ring::stage(index);
  }

  PUMA_DEVICE void end_pass(const AdapterArguments& p, int pass) {
    if (!p.resident) this->leave_or_stay(p, pass, [] {});
  }

 private:
  PUMA_DEVICE static void fetch(const AdapterArguments& p, int stage, int step) {
    dev::bulk_copy(Ring::stage(stage), Ring::source(p, step), Ring::Packed::kStepBytes,
                   adapter_control()->arrived + stage);
  }
  // By thread 0 alone.
  PUMA_DEVICE static void fetch_next(const AdapterArguments& p, int stage) {
    int32_t* next = &adapter_control()->next_step;
    const int step = dev::load_shared(next);
    fetch(p, stage, step);
    dev::store_shared(next, step + 1 == Ring::used_steps(p) ? 0 : step + 1);
  }

  int left_;  // of a ring: steps that are still to be fetched
  int parity_ = 0;
};

template <typename T, int kWidth>
using WeightStream = std::conditional_t<uses_warpgroups<T>, BulkWeights<T, kWidth>, CopiedWeights<T, kWidth>>;

}  // namespace puma
