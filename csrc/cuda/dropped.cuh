// The rows of dropped samples: out = residual + branch in the forward, zeros in the backward.
#pragma once

#include <type_traits>

#include "schedule.cuh"

namespace puma {

// A chunk is what a warp moves at once: kUnroll times 32 lanes times kElements<T> elements of one sample. Warps move
// them that have no rows to multiply, or none any more. (All warps moving one at first, while weights are on their way,
// was slower on an H200.) Who moves which does not show in the result.
//   Forward:  chunks are taken from a counter.
//   Backward: there is nothing to wait for, so the warps without rows in the last pass share them out, or all warps if
//             those are few. The counter, which a second backward of the same forward would find used, is left alone.
template <typename T, typename R, bool kBackward, Branch kBranch>
class DroppedSamples {
 public:
  PUMA_DEVICE explicit DroppedSamples(const AdapterArguments& p)
      : p_(p), elements_(static_cast<int64_t>(p.tokens_per_sample) * p.channels) {}

  // By whole warps; returns when nothing is left for this one.
  PUMA_DEVICE void move() {
    if constexpr (kBackward) {
      const Movers movers(p_);
      for (int64_t chunk = movers.first; begin(chunk); chunk += movers.count) finish();
    } else {
      int64_t chunk = take();
      while (begin(chunk)) {
        chunk = take();  // meanwhile
        finish();
      }
    }
  }

 private:
  using B = BranchType<T, R, kBranch>;
  // Units that a lane reads for kElements<T> elements.
  static constexpr int kUnits = Stored<R, T>::kUnits + (kBranch == Branch::kNone ? 0 : Stored<B, T>::kUnits);
  static constexpr int kUnroll = kBackward || kUnits <= 2 ? 8 : 4;  // as many as it takes to fill the way to memory
  static constexpr int64_t kStride = 32 * kElements<T>;
  static constexpr int64_t kChunk = kUnroll * kStride;

  // The warps of the backward that move chunks.
  struct Movers {
    int64_t first = INT64_MAX;  // this warp's first chunk; none if it is no mover
    int64_t count = 0;

    PUMA_DEVICE explicit Movers(const AdapterArguments& p) {
      using Plan = Schedule<kWarpsTogether<T>>;
      const int slots = Plan::slots(), tiles = Plan(p).tiles;
      const int busy = tiles == 0 ? 0 : (tiles - 1) % slots + 1;  // groups with rows in the last pass: the first ones
      const int begin = (slots - busy) * 8 < slots ? 0 : busy;
      count = static_cast<int64_t>(slots - begin) * kWarpsTogether<T>;
      const int group = Plan::tile(0) - begin;
      if (group >= 0) first = static_cast<int64_t>(group) * kWarpsTogether<T> + dev::warp() % kWarpsTogether<T>;
    }
  };

  PUMA_DEVICE int64_t take() const {
    return dev::first_lane(dev::lane() == 0 ? dev::add_global(&p_.list->next_chunk, 1) : 0);
  }
  // The reads of a chunk, if there is such a one.
  PUMA_DEVICE bool begin(int64_t chunk) {
    left_ = 0;
    const int kept = p_.list->kept;
    const int64_t chunks_per_sample = (elements_ + kChunk - 1) / kChunk;
    if (chunk >= (p_.samples - kept) * chunks_per_sample) return false;
    const int64_t rank = chunk / chunks_per_sample;
    const int64_t in_sample = (chunk - rank * chunks_per_sample) * kChunk + dev::lane() * kElements<T>;
    first_ = p_.order[kept + rank] * elements_ + in_sample;
    left_ = elements_ - in_sample;
    if constexpr (!kBackward) {
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t at = i * kStride;
        if (at >= left_) continue;
        rows_[i].load(static_cast<const R*>(p_.residual) + first_ + at);
        if constexpr (kBranch != Branch::kNone) branch_[i].load(static_cast<const B*>(p_.branch) + first_ + at);
      }
    }
    return true;
  }

  PUMA_DEVICE void finish() const {
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t at = i * kStride;
      if (at >= left_) continue;
      if constexpr (kBackward) {
        dev::store_global16(static_cast<T*>(p_.output) + first_ + at, Bytes16{{0, 0, 0, 0}});
      } else {
        Stored<R, T> sum = rows_[i];
        if constexpr (kBranch != Branch::kNone) {
          float v[kElements<T>];
#pragma unroll
          for (int e = 0; e < kElements<T>; ++e) v[e] = rows_[i].element(e) + branch_[i].element(e);
          sum.set(v);
        }
        sum.store(static_cast<R*>(p_.output) + first_ + at);
      }
    }
  }

  const AdapterArguments& p_;
  int64_t elements_;   // of a sample
  int64_t first_ = 0;  // this lane's first element of the chunk
  int64_t left_ = 0;   // elements of the sample from there on; none: no chunk
  Stored<R, T> rows_[kUnroll];
  Stored<B, T> branch_[kUnroll];
};

}  // namespace puma
