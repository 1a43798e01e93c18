// Products of a few rows with a VectorOperand, a tile of sums at a time.
#pragma once

#include <cstdint>

#include "tile.h"

namespace puma {

// Left-hand sides lie in blocks of 16 columns, one row's 16 behind the other's: a tile finds all its rows at fixed
// distances from one address.
constexpr int64_t kBlock = 16;

// tile = left @ a panel of `depth` rows; left's blocks are `next` elements apart. ahead.fetch() is called once per block.
template <int bytes, int I, int J, class Ahead>
PUMA_INLINE void multiply(
    Tile<float, bytes, I, J>& tile, const float* left, int64_t next, const float* panel, int64_t depth, Ahead& ahead) {
  tile.clear();
  for (int64_t block = 0; block < depth; block += kBlock, left += next) {
    ahead.fetch();
    _Pragma("GCC unroll 4") for (int k = 0; k < kBlock; ++k, panel += tile.kColumns) tile.add(left + k, kBlock, panel);
  }
}

// A row as the i-th of a left-hand side of I rows; zeros if it is null.
template <int bytes, int I, class S>
PUMA_INLINE void pack_row(float* left, int64_t i, const S* row, int64_t width) {
  using V = typename Vector<float, bytes>::type;
  constexpr int64_t W = bytes / static_cast<int>(sizeof(float));
  float* out = left + i * kBlock;
  for (int64_t c = 0; c < width; c += kBlock, out += I * kBlock) {
    PUMA_UNROLL for (int64_t x = 0; x < kBlock; x += W) store(out + x, row == nullptr ? V{} : load<V>(row + c + x));
  }
}

}  // namespace puma
