// What the adapter's kernel is going to read is brought into the level 2 cache while it waits for something else. Done
// for more than this, it made the kernel slower: the weights come the same way.
#pragma once

#include "schedule.cuh"

namespace puma {

// The input of kept samples, by all warps of the grid, while the kernel in front ends; at most what stays in the cache
// until it is read. The gates are read here only, where a wrong one would do no harm.
template <typename S>
PUMA_DEVICE void prefetch_kept_input(const AdapterArguments& p) {
  constexpr int kPiece = 4096;
  constexpr int64_t kMost = INT64_C(24) << 20;
  if (dev::lane() != 0) return;
  const int64_t sample_bytes = static_cast<int64_t>(p.tokens_per_sample) * p.channels * sizeof(S);
  const int64_t pieces = (sample_bytes + kPiece - 1) / kPiece;
  const int64_t all = p.samples * pieces < kMost / kPiece ? p.samples * pieces : kMost / kPiece;
  const int64_t warps = dev::blocks() * (dev::threads() / 32);
  for (int64_t i = dev::warp() * dev::blocks() + dev::block(); i < all; i += warps) {
    const int64_t sample = i / pieces, begin = (i - sample * pieces) * kPiece;
    if (p.gate != nullptr && p.gate[sample] == 0.0f) continue;
    const int64_t left = sample_bytes - begin;
    const char* piece = static_cast<const char*>(p.input) + sample * sample_bytes + begin;
    dev::prefetch(piece, static_cast<int>(left < kPiece ? left : kPiece));
  }
}

// The saved activation of a warp's tile, of whole units.
template <typename T>
PUMA_DEVICE void prefetch_mask(const AdapterArguments& p, const LanePlace<T>& place) {
  if (p.width % kElements<T> != 0 || dev::lane() != 0 || place.rows_left <= 0) return;
  const int count = place.rows_left < kTileRows ? place.rows_left : kTileRows;
  const T* first = static_cast<const T*>(p.mask) + static_cast<int64_t>(place.compact()) * p.width;
  dev::prefetch(first, count * p.width * static_cast<int>(sizeof(T)));
}

}  // namespace puma
