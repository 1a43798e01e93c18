// The rows of dropped samples: out = residual + branch in the forward, zeros in the backward. They are moved by the
// warps that have no rows to multiply, or none any more.
#pragma once

#include <type_traits>

#include "adapter_arguments.h"
#include "fragment.cuh"

namespace puma {

// A chunk is what a warp moves at once: kUnroll times 32 lanes times kElements<T> elements of one sample. The block's
// chunks are chunk, chunk + blocks, ...; its warps take them one after the other from a counter in shared memory. Which
// warp moves which chunk does not show in the result.
template <typename T, typename R, bool kBackward, Branch kBranch>
class DroppedSamples {
 public:
  PUMA_DEVICE DroppedSamples(const AdapterArguments& p, int64_t kept, int32_t* counter)
      : p_(p), kept_(kept), counter_(counter), elements_(static_cast<int64_t>(p.tokens_per_sample) * p.channels),
        chunks_per_sample_((elements_ + kChunk - 1) / kChunk) {}

  // Called by whole warps; returns when nothing is left.
  PUMA_DEVICE void move() {
    const int64_t chunks = (p_.samples - kept_) * chunks_per_sample_;
    while (true) {
      const int taken = dev::first_lane(dev::lane() == 0 ? dev::add_shared(counter_, 1) : 0);
      const int64_t chunk = dev::block() + taken * dev::blocks();
      if (chunk >= chunks) return;
      const int64_t rank = chunk / chunks_per_sample_;
      const int64_t begin = (chunk - rank * chunks_per_sample_) * kChunk;
      move_chunk(p_.order[kept_ + rank] * elements_, begin);
    }
  }

 private:
  static constexpr int kUnroll = 4;
  static constexpr int64_t kStride = 32 * kElements<T>;
  static constexpr int64_t kChunk = kUnroll * kStride;

  PUMA_DEVICE void move_chunk(int64_t sample, int64_t begin) const {
    const int64_t first = begin + dev::lane() * kElements<T>;
    if constexpr (kBackward) {
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t at = first + i * kStride;
        if (at < elements_) dev::store_global16(static_cast<T*>(p_.output) + sample + at, Bytes16{{0, 0, 0, 0}});
      }
    } else {
      using B = std::conditional_t<kBranch == Branch::kNarrow, T, R>;
      Stored<R, T> rows[kUnroll];
      Stored<B, T> branch[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t at = first + i * kStride;
        if (at >= elements_) continue;
        rows[i].load(static_cast<const R*>(p_.residual) + sample + at);
        if constexpr (kBranch != Branch::kNone) branch[i].load(static_cast<const B*>(p_.branch) + sample + at);
      }
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t at = first + i * kStride;
        if (at >= elements_) continue;
        if constexpr (kBranch != Branch::kNone) {
          float v[kElements<T>];
#pragma unroll
          for (int e = 0; e < kElements<T>; ++e) v[e] = rows[i].element(e) + branch[i].element(e);
          rows[i].set(v);
        }
        rows[i].store(static_cast<R*>(p_.output) + sample + at);
      }
    }
  }

  const AdapterArguments& p_;
  int64_t kept_;
  int32_t* counter_;
  int64_t elements_;
  int64_t chunks_per_sample_;
};

}  // namespace puma
