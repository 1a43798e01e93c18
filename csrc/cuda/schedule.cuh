// Which rows of the adapter's kept samples a warp works on.
#pragma once

#include "adapter_arguments.h"
#include "fragment.cuh"

namespace puma {

// In each pass a group of kTogether warps has a tile of 16 rows per warp, or none. Rows of kept samples are fewer than
// 2^31 (sizes.h). What is cheap to compute again is not kept: registers are short.
template <int kTogether>
struct Schedule {
  int kept;
  int kept_rows;
  int tiles;

  PUMA_DEVICE explicit Schedule(const AdapterArguments& p)
      : kept(p.list->kept),
        kept_rows(kept * p.tokens_per_sample),
        tiles((kept_rows + kTileRows * kTogether - 1) / (kTileRows * kTogether)) {}

  // Groups of all blocks.
  PUMA_DEVICE static int slots() { return static_cast<int>(dev::blocks()) * (dev::threads() / (32 * kTogether)); }
  // Neighbouring tiles go to different multiprocessors, so that each gets its share of a remainder.
  PUMA_DEVICE static int tile(int pass) {
    return pass * slots() + dev::warp() / kTogether * static_cast<int>(dev::blocks()) + static_cast<int>(dev::block());
  }
  // The compacted row that this warp's tile begins with.
  PUMA_DEVICE static int first_row(int pass) {
    return (tile(pass) * kTogether + dev::warp() % kTogether) * kTileRows;
  }
  // Passes in which this warp has a tile, and those in which the block's first one has: no other has more.
  PUMA_DEVICE int passes() const { return passes_from(tile(0)); }
  PUMA_DEVICE int block_passes() const { return passes_from(static_cast<int>(dev::block())); }
  // Threads of the block whose warps have a tile: the first ones.
  PUMA_DEVICE int active_threads(int pass) const {
    const int left = tiles - pass * slots() - static_cast<int>(dev::block());
    const int blocks = static_cast<int>(dev::blocks());
    const int threads = left > 0 ? (left + blocks - 1) / blocks * 32 * kTogether : 0;
    return threads < dev::threads() ? threads : dev::threads();
  }

 private:
  PUMA_DEVICE int passes_from(int first) const { return first < tiles ? (tiles - first + slots() - 1) / slots() : 0; }
};

// A lane's part of a warp's 16 compacted rows: rows lane / 4 + 8 h, and of each group of columns its (lane % 4)-th
// unit. A row behind the last one is computed like any other, from a row that exists; it is not stored.
template <typename T>
struct LanePlace {
  int pass = 0;
  int rows_left;      // kept samples' rows from row h = 0 on
  int columns_left;   // from this lane's first column on
  int64_t offset[2];  // of row h and this lane's first column among all elements
  float factor[2];    // of row h's sample

  PUMA_DEVICE explicit LanePlace(const AdapterArguments& p)
      : columns_left(p.channels - dev::lane() % 4 * kElements<T>) {
    find_rows(p);
  }
  // Reads nothing that depends on how many samples are kept, so that all arrives at once; rows_left is set afterwards.
  PUMA_DEVICE void find_rows(const AdapterArguments& p) {
    const uint32_t column = dev::here(dev::lane() % 4 * kElements<T>);  // computed anew: kept, it costs registers
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = compact() + 8 * h, rank = row / p.tokens_per_sample;
      const int listed = rank < p.samples ? rank : static_cast<int>(p.samples) - 1;
      factor[h] = p.factors[listed];
      const int token = row - rank * p.tokens_per_sample;
      const int64_t full = static_cast<int64_t>(p.order[listed]) * p.tokens_per_sample + token;
      offset[h] = full * p.channels + column;
    }
  }
  // Row h = 0 among the kept samples' rows.
  PUMA_DEVICE int compact() const { return Schedule<kWarpsTogether<T>>::first_row(pass) + dev::lane() / 4; }
  PUMA_DEVICE bool valid(int h) const { return 8 * h < rows_left; }
};

}  // namespace puma
