// The rows of dropped samples: out = residual + branch in the forward, zeros in the backward.
#pragma once

#include <type_traits>

#include "adapter_arguments.h"
#include "fragment.cuh"

namespace puma {

// A chunk is what a warp moves at once: kUnroll times 32 lanes times kElements<T> elements of one sample. Forward: each
// warp of the grid has one of the first chunks as its own; the others are taken from a counter by warps that have no
// rows to multiply, or none any more. Who moves which does not show in the result. Backward: there is nothing to wait
// for, so each warp has its share, and the counter, which a second backward of the same forward would find used, is
// left alone.
template <typename T, typename R, bool kBackward, Branch kBranch>
class DroppedSamples {
 public:
  // What it computes is computed anew each time: kept from the first to the last, it would cost registers in between.
  PUMA_DEVICE explicit DroppedSamples(const AdapterArguments& p)
      : p_(p), elements_(static_cast<int64_t>(dev::here(static_cast<uint32_t>(p.tokens_per_sample))) * p.channels) {}

  // Both are called by whole warps.
  PUMA_DEVICE void move_own() {
    int64_t chunk = dev::warp() * dev::blocks() + dev::block();
    while (begin(chunk)) {
      finish();
      if constexpr (!kBackward) return;
      chunk += warps();
    }
  }
  // Returns when no other chunk is left.
  PUMA_DEVICE void move_others() {
    if (kBackward || p_.output == nullptr) return;
    int64_t chunk = take();
    while (begin(chunk)) {
      chunk = take();  // meanwhile
      finish();
    }
  }

 private:
  using B = BranchType<T, R, kBranch>;
  // Units that a lane reads for kElements<T> elements.
  static constexpr int kUnits = Stored<R, T>::kUnits + (kBranch == Branch::kNone ? 0 : Stored<B, T>::kUnits);
  static constexpr int kUnroll = kBackward || kUnits == 1 ? 8 : kUnits == 2 ? 4 : 2;
  static constexpr int64_t kStride = 32 * kElements<T>;
  static constexpr int64_t kChunk = kUnroll * kStride;

  PUMA_DEVICE static int64_t warps() { return dev::blocks() * (dev::threads() / 32); }
  PUMA_DEVICE int64_t take() const {
    return warps() + dev::first_lane(dev::lane() == 0 ? dev::add_global(&p_.list->next_chunk, 1) : 0);
  }
  // The reads of a chunk, if there is such a one.
  PUMA_DEVICE bool begin(int64_t chunk) {
    left_ = 0;
    const int kept = p_.list->kept;
    const int64_t chunks_per_sample = (elements_ + kChunk - 1) / kChunk;
    if (p_.output == nullptr || chunk >= (p_.samples - kept) * chunks_per_sample) return false;
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
