// The rows of dropped samples: out = residual + branch in the forward, zeros in the backward. They are moved by the
// warps that have no rows to multiply, or none any more.
#pragma once

#include <type_traits>

#include "adapter_arguments.h"
#include "fragment.cuh"

namespace puma {

// kElements<T> elements of the branch, in the type they have.
template <typename T, typename R>
struct BranchUnit {
  Stored<R, T> stored;

  PUMA_DEVICE static bool is_narrow(const AdapterArguments& p) { return !same_type<R, T> && p.branch_is_narrow; }
  PUMA_DEVICE void load(const AdapterArguments& p, int64_t offset) {
    if (is_narrow(p)) {
      stored.unit[0] = dev::load_global16(static_cast<const T*>(p.branch) + offset);
    } else {
      stored.load(static_cast<const R*>(p.branch) + offset);
    }
  }
  PUMA_DEVICE void load_shared(const AdapterArguments& p, const Bytes16* first) {
    if (is_narrow(p)) {
      stored.unit[0] = dev::load_shared(first);
    } else {
      stored.load_shared(first);
    }
  }
  PUMA_DEVICE static void copy_async(const AdapterArguments& p, Bytes16* first, int64_t offset, bool inside) {
    if (is_narrow(p)) {
      dev::copy_async16(first, static_cast<const T*>(p.branch) + offset, inside);
    } else {
      Stored<R, T>::copy_async(first, static_cast<const R*>(p.branch) + offset, inside);
    }
  }
  PUMA_DEVICE float element(const AdapterArguments& p, int i) const {
    return is_narrow(p) ? unit_element<T>(stored.unit[0], i) : stored.element(i);
  }
};

// A chunk is what a warp moves at once: kUnroll times 32 lanes times kElements<T> elements of one sample. The block's
// chunks are chunk, chunk + blocks, ...; its warps take them one after the other from a counter in shared memory. Which
// warp moves which chunk does not show in the result.
template <typename T, typename R, bool kBackward>
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
      Stored<R, T> rows[kUnroll];
      BranchUnit<T, R> branch[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t at = first + i * kStride;
        if (at >= elements_) continue;
        rows[i].load(static_cast<const R*>(p_.residual) + sample + at);
        if (p_.branch != nullptr) branch[i].load(p_, sample + at);
      }
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t at = first + i * kStride;
        if (at >= elements_) continue;
        if (p_.branch != nullptr) {
          float v[kElements<T>];
#pragma unroll
          for (int e = 0; e < kElements<T>; ++e) v[e] = rows[i].element(e) + branch[i].element(p_, e);
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
