// The rows of dropped samples: out = residual + branch in the forward, zeros in the backward. They are moved by the
// warps that have no rows to multiply, or none any more.
#pragma once

#include <type_traits>

#include "adapter_arguments.h"
#include "fragment.cuh"

namespace puma {

// A chunk is what a warp moves at once: kUnroll times 32 lanes times kElements<T> elements of one sample. Warps of all
// blocks take chunks from one counter, each the next one while the rows of the last are on their way: who moves which
// does not show in the result.
template <typename T, typename R, bool kBackward, Branch kBranch>
class DroppedSamples {
 public:
  PUMA_DEVICE explicit DroppedSamples(const AdapterArguments& p)
      : p_(p), elements_(static_cast<int64_t>(p.tokens_per_sample) * p.channels) {}

  // Called by whole warps; returns when nothing is left.
  PUMA_DEVICE void move() const {
    const int kept = p_.list->kept;
    const int64_t chunks_per_sample = (elements_ + kChunk - 1) / kChunk;
    const int64_t chunks = (p_.samples - kept) * chunks_per_sample;
    int64_t chunk = take();
    while (chunk < chunks) {
      const int64_t rank = chunk / chunks_per_sample;
      chunk = move_chunk(p_.order[kept + rank] * elements_, (chunk - rank * chunks_per_sample) * kChunk);
    }
  }

 private:
  using B = std::conditional_t<kBranch == Branch::kNarrow, T, R>;
  // Units that a lane reads for kElements<T> elements.
  static constexpr int kUnits = Stored<R, T>::kUnits + (kBranch == Branch::kNone ? 0 : Stored<B, T>::kUnits);
  static constexpr int kUnroll = kBackward || kUnits == 1 ? 8 : kUnits == 2 ? 4 : 2;
  static constexpr int64_t kStride = 32 * kElements<T>;
  static constexpr int64_t kChunk = kUnroll * kStride;

  PUMA_DEVICE int64_t take() const {
    return dev::first_lane(dev::lane() == 0 ? dev::add_global(&p_.list->next_chunk, 1) : 0);
  }
  // Returns the chunk to move next.
  PUMA_DEVICE int64_t move_chunk(int64_t sample, int64_t begin) const {
    const int64_t first = begin + dev::lane() * kElements<T>;
    if constexpr (kBackward) {
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t at = first + i * kStride;
        if (at < elements_) dev::store_global16(static_cast<T*>(p_.output) + sample + at, Bytes16{{0, 0, 0, 0}});
      }
      return take();
    } else {
      Stored<R, T> rows[kUnroll];
      Stored<B, T> branch[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t at = first + i * kStride;
        if (at >= elements_) continue;
        rows[i].load(static_cast<const R*>(p_.residual) + sample + at);
        if constexpr (kBranch != Branch::kNone) branch[i].load(static_cast<const B*>(p_.branch) + sample + at);
      }
      const int64_t next = take();
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
      return next;
    }
  }

  const AdapterArguments& p_;
  int64_t elements_;
};

}  // namespace puma
