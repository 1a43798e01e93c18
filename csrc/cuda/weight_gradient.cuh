// Gradients of the adapter's weights: sums over the rows of kept samples of
//
//   grad_down (C x r) = tokens^T @ delta              grad_up^T (C x r) = grad^T @ (factor * hidden)
//
// Where all kept samples have one factor, it multiplies the sum instead of each row.
//
// Both are computed as C x r. The rows are split over blocks; each block leaves its part in a float workspace, and a
// second kernel adds the parts in their order. No atomics: the same input gives the same bits on the same machine.
#pragma once

#include "adapter.cuh"

namespace puma {

struct WeightGradientArguments {
  const void* tokens;  // (T)
  const void* grad;    // (T)
  bool grad_is_compact;  // rows of kept samples only
  const void* hidden;  // (T), compacted rows of `width`
  const void* delta;   // (T), compacted rows of kWidth
  const SampleList* list;  // these three: see PrepareArguments
  const int32_t* order;
  const float* factors;
  float* parts;     // [matrix 2][channel tile][split][kChannelTile][kWidth]
  void* grad_down;  // (T, or float) C x r
  void* grad_up;    // (T, or float) r x C
  bool gradients_are_float;
  int tokens_per_sample;
  int channels;
  int channel_tiles;
  int splits;
  int stages;  // of the ring in shared memory
  int width;
};

inline constexpr int kChannelTile = 128;
inline constexpr int kGradientThreads = 256;  // 8 warps
inline constexpr int kReduceThreads = 256;
inline constexpr int kReduceTile = 32;
inline constexpr int kMostGradientStages = 6;

// One stage in shared memory: kRows rows of both operands. Each operand is cut into blocks of
// kBlockColumns columns.
template <typename T, int kWidth>
struct GradientTile {
  static constexpr int kRows = 128 / static_cast<int>(sizeof(T));
  // 16-bit: rows of 128 bytes, in which unit u of row k lies at u ^ (k % 8): what the tensor cores of Hopper read, and
  // free of bank conflicts for ldmatrix elsewhere. float: one block, rows padded so that four are 8 banks apart.
  static constexpr bool kSwizzled = sizeof(T) == 2;
  static constexpr int kBlockColumns = 64;
  static constexpr int kBlockBytes = kRows * 128;
  static constexpr int kPadding = 8;
  static constexpr int kRowPadding = kSwizzled ? 0 : kPadding;
  static constexpr int kBytesA = kRows * (kChannelTile + kRowPadding) * static_cast<int>(sizeof(T));
  static constexpr int kBytesB = kRows * (kWidth + kRowPadding) * static_cast<int>(sizeof(T));
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static_assert(kStageBytes % 1024 == 0);  // the swizzle asks for it
  static constexpr int kUnitsPerThreadA = kRows * kChannelTile / kElements<T> / kGradientThreads;
  static constexpr int kUnitsPerThreadB = kRows * kWidth / kElements<T> / kGradientThreads;

  // Byte of a unit's first element in an operand of kColumns columns.
  template <int kColumns>
  PUMA_DEVICE static int offset(int row, int column) {
    if constexpr (kSwizzled) {
      const int unit = column % kBlockColumns / kElements<T>;
      return column / kBlockColumns * kBlockBytes + row * 128 + (unit ^ row % 8) * 16;
    } else {
      return (row * (kColumns + kPadding) + column) * static_cast<int>(sizeof(T));
    }
  }
  // Bytes between a column's elements `rows` rows apart, a multiple of 8.
  template <int kColumns>
  PUMA_DEVICE static constexpr int stride(int rows) {
    return kSwizzled ? rows * 128 : rows * (kColumns + kPadding) * static_cast<int>(sizeof(T));
  }
};

// A unit's elements, each times the factor, rounded.
template <typename T>
PUMA_DEVICE Bytes16 scale_unit(const Bytes16& unit, float factor) {
  float v[kElements<T>];
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) v[e] = unit_element<T>(unit, e) * factor;
  return make_unit<T>(v);
}

// What a thread accumulates: a warpgroup has 64 channels by all of r, a warp 32 channels by half of r.
template <typename T, int kWidth>
struct GradientSums {
  static constexpr int kRowTiles = uses_warpgroups<T> ? 1 : 2;  // of 16 channels
  static constexpr int kColumnTiles = kWidth / 8 / kRowTiles;
  float sum[kRowTiles][kColumnTiles][4];

  PUMA_DEVICE static int first_channel() {
    if constexpr (uses_warpgroups<T>) return dev::warp() * 16;
    return dev::warp() % 4 * 32;
  }
  PUMA_DEVICE static int first_column() {
    if constexpr (uses_warpgroups<T>) return 0;
    return dev::warp() / 4 * (kWidth / 2);
  }
};

// sums += A^T B over one stage, on its way when this returns: dev::warpgroup_wait(sums.sum[0]) waits for it.
template <typename T, int kWidth>
PUMA_DEVICE void multiply_tile_meanwhile(const char* a, const char* b, GradientSums<T, kWidth>& sums) {
  using Tile = GradientTile<T, kWidth>;
  dev::warpgroup_begin(sums.sum[0]);
#pragma unroll
  for (int k = 0; k < Tile::kRows; k += 16) {  // all rows: a branch among these products would cost more
    const char* block_a = a + dev::warp() / 4 * Tile::kBlockBytes;
    dev::warpgroup_product_transposed(T{}, sums.sum[0], block_a, b, k * 128, Tile::kBlockBytes);
  }
  dev::warpgroup_commit();
}

// sums += A^T B over the first `rows` rows of one stage, which are followed by zeros.
template <typename T, int kWidth>
PUMA_DEVICE void multiply_tile(const char* a, const char* b, int rows, GradientSums<T, kWidth>& sums) {
  using Tile = GradientTile<T, kWidth>;
  const int lane = dev::lane();
  const int m0 = sums.first_channel(), n0 = sums.first_column();
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < Tile::kRows; k += 16) {
      if (k >= rows) break;
      Bytes16 fragment_a[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // matrices: (k, m), (k, m + 8), (k + 8, m), (k + 8, m + 8)
        const int row = k + lane / 16 * 8 + lane % 8, column = m0 + i * 16 + lane / 8 % 2 * 8;
        fragment_a[i] = dev::load_matrices_transposed(a + Tile::template offset<kChannelTile>(row, column));
      }
#pragma unroll
      for (int j = 0; j < kWidth / 16; j += 2) {  // matrices: (k, n), (k + 8, n), (k, n + 8), (k + 8, n + 8)
        const int row = k + lane / 8 % 2 * 8 + lane % 8, column = n0 + j * 8 + lane / 16 * 8;
        const Bytes16 fragment_b = dev::load_matrices_transposed(b + Tile::template offset<kWidth>(row, column));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t* fa = fragment_a[i].word;
          float(&d)[kWidth / 16][4] = sums.sum[i];
          dev::mma_16x8x16(T{}, d[j], fa[0], fa[1], fa[2], fa[3], fragment_b.word[0], fragment_b.word[1]);
          dev::mma_16x8x16(T{}, d[j + 1], fa[0], fa[1], fa[2], fa[3], fragment_b.word[2], fragment_b.word[3]);
        }
      }
    }
  } else {
    const int g = lane / 4, t = lane % 4;
#pragma unroll 1  // reading further ahead would take more registers than there are
    for (int k = 0; k < Tile::kRows && k < rows; k += 8) {
      uint32_t fragment_a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int row = k + t + w / 2 * 4, column = m0 + i * 16 + g + w % 2 * 8;
          fragment_a[i][w] = dev::float_bits(
              dev::load_shared(reinterpret_cast<const float*>(a + Tile::template offset<kChannelTile>(row, column))));
        }
      }
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) {
        uint32_t fragment_b[2];
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          const int row = k + t + w * 4, column = n0 + j * 8 + g;
          fragment_b[w] = dev::float_bits(
              dev::load_shared(reinterpret_cast<const float*>(b + Tile::template offset<kWidth>(row, column))));
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          in_short_run<T>(sums.sum[i][j], [&](float (&d)[4]) { mma_float(d, fragment_a[i], fragment_b); });
        }
      }
    }
  }
}

// One matrix as the kernel sees it: sum over rows of a^T (along C) times b (along r).
struct GradientOperands {
  const void* a;      // (T), rows of `channels` elements
  bool a_is_compact;  // of kept samples only, else of all
  const void* b;      // (T), compacted rows of b_width elements
  int b_width;
  bool b_is_scaled;   // each row by its factor
  bool are_complete;  // none is written by the kernel in front
};

// A chunk of rows of one kept sample. Chunks do not reach over a sample's end: then its rows lie one behind the other
// in every operand. (Samples of a few tokens leave most of a chunk empty: right, but slow.)
struct RowChunk {
  int rank;    // of the sample among the kept ones
  int sample;
  int first;   // token
  PUMA_DEVICE RowChunk(const WeightGradientArguments& p, int chunk, int chunks_per_sample, int rows)
      : rank(chunk / chunks_per_sample), sample(p.order[rank]), first((chunk - rank * chunks_per_sample) * rows) {}
  PUMA_DEVICE void advance(const WeightGradientArguments& p, int rows, int kept) {
    first += rows;
    if (first < p.tokens_per_sample) return;
    first = 0;
    if (++rank < kept) sample = p.order[rank];
  }
  PUMA_DEVICE int64_t compact_row(const WeightGradientArguments& p) const {
    return static_cast<int64_t>(rank) * p.tokens_per_sample + first;
  }
  PUMA_DEVICE int64_t full_row(const WeightGradientArguments& p) const {
    return static_cast<int64_t>(sample) * p.tokens_per_sample + first;
  }
};

// One block's part. Rows arrive through a ring of stages, a chunk in each.
template <typename T, int kWidth>
PUMA_DEVICE void weight_gradient_part(const WeightGradientArguments& p, const GradientOperands& operands,
                                      int channel_tile, int split, float* part) {
  using Tile = GradientTile<T, kWidth>;
  using Sums = GradientSums<T, kWidth>;
  constexpr int kUnitsPerRowA = kChannelTile / kElements<T>;
  constexpr int kUnitsPerRowB = kWidth / kElements<T>;
  constexpr int kRowsPerLoadA = kGradientThreads / kUnitsPerRowA;
  constexpr int kRowsPerLoadB = kGradientThreads / kUnitsPerRowB;

  const int kept = p.list->kept;
  const int chunks_per_sample = (p.tokens_per_sample + Tile::kRows - 1) / Tile::kRows;
  const int chunks_in_all = kept * chunks_per_sample;
  const int chunks_per_split = (chunks_in_all + p.splits - 1) / p.splits;
  const int begin = split * chunks_per_split;
  const int left = chunks_in_all - begin;
  const int chunks = left < 0 ? 0 : left < chunks_per_split ? left : chunks_per_split;

  const int row_a = dev::thread() / kUnitsPerRowA, column_a = dev::thread() % kUnitsPerRowA * kElements<T>;
  const int row_b = dev::thread() / kUnitsPerRowB, column_b = dev::thread() % kUnitsPerRowB * kElements<T>;
  const int channel = channel_tile * kChannelTile + column_a;
  const bool has_a = channel < p.channels, has_b = column_b < operands.b_width;
  const bool rows_aligned = operands.b_width % kElements<T> == 0;
  // Where this thread's first unit lies in a stage, and how far apart its units are: whole swizzles.
  static_assert(kRowsPerLoadA % 8 == 0 && kRowsPerLoadB % 8 == 0);
  const int offset_a = Tile::template offset<kChannelTile>(row_a, column_a);
  const int offset_b = Tile::kBytesA + Tile::template offset<kWidth>(row_b, column_b);
  constexpr int kStrideA = Tile::template stride<kChannelTile>(kRowsPerLoadA);
  constexpr int kStrideB = Tile::template stride<kWidth>(kRowsPerLoadB);

  const auto stage = [](int index) { return dev::shared_memory() + index * Tile::kStageBytes; };
  RowChunk ahead(p, chunks > 0 ? begin : 0, chunks_per_sample, Tile::kRows);
  int fill = 0, to_fetch = chunks;
  const auto fetch = [&] {
    if (to_fetch > 0) {
      const int rows = p.tokens_per_sample - ahead.first;
      const int64_t row = operands.a_is_compact ? ahead.compact_row(p) : ahead.full_row(p);
      const T* a = static_cast<const T*>(operands.a) + ((row + row_a) * p.channels + channel);
      const int rows_left_a = has_a ? rows - row_a : 0;
#pragma unroll
      for (int i = 0; i < Tile::kUnitsPerThreadA; ++i) {
        dev::copy_async16(stage(fill) + offset_a + i * kStrideA, a, i * kRowsPerLoadA < rows_left_a);
        a += kRowsPerLoadA * p.channels;
      }
      const T* b = static_cast<const T*>(operands.b) + (ahead.compact_row(p) + row_b) * operands.b_width;
      const int rows_left_b = rows - row_b;
      if (rows_aligned) {
        b += column_b;
#pragma unroll
        for (int i = 0; i < Tile::kUnitsPerThreadB; ++i) {
          dev::copy_async16(stage(fill) + offset_b + i * kStrideB, b, i * kRowsPerLoadB < (has_b ? rows_left_b : 0));
          b += kRowsPerLoadB * operands.b_width;
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < Tile::kUnitsPerThreadB; ++i) {
          const int width = i * kRowsPerLoadB < rows_left_b ? operands.b_width : 0;
          auto* unit = reinterpret_cast<Bytes16*>(stage(fill) + offset_b + i * kStrideB);
          dev::store_shared(unit, load_row_unit(b, column_b, width, false));
          b += kRowsPerLoadB * operands.b_width;
        }
      }
      ahead.advance(p, Tile::kRows, kept);
      --to_fetch;
      if (++fill == p.stages) fill = 0;
    }
    dev::copy_async_commit();  // also when empty: waiting counts groups
  };

  Sums sums;
#pragma unroll
  for (int i = 0; i < Sums::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::kColumnTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums.sum[i][j][e] = 0.0f;
    }
  }
  if (!operands.are_complete) dev::wait_for_previous_kernel();
  for (int i = 0; i < p.stages - 1; ++i) fetch();
  int use = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    dev::copy_async_wait(p.stages - 2);
    if (operands.b_is_scaled) {  // a thread scales what it has fetched itself
      const float factor = p.factors[(begin + chunk) / chunks_per_sample];
#pragma unroll
      for (int i = 0; i < Tile::kUnitsPerThreadB; ++i) {
        auto* unit = reinterpret_cast<Bytes16*>(stage(use) + offset_b + i * kStrideB);
        dev::store_shared(unit, scale_unit<T>(dev::load_shared(unit), factor));
      }
    }
    const char* a = stage(use);
    const char* b = a + Tile::kBytesA;
    if (++use == p.stages) use = 0;
    // The barrier: these rows have arrived for all, and all have left the stage filled next.
    if constexpr (uses_warpgroups<T>) {
      dev::publish_operands();
      dev::sync_block();
      multiply_tile_meanwhile<T, kWidth>(a, b, sums);
      fetch();
      dev::warpgroup_wait(sums.sum[0]);
    } else {
      dev::sync_block();
      fetch();
      const int first = (begin + chunk) % chunks_per_sample * Tile::kRows;
      multiply_tile<T, kWidth>(a, b, p.tokens_per_sample - first, sums);
    }
  }
  dev::wait_for_previous_kernel();  // before anything is written
  dev::let_next_kernel_begin();     // not before: then at most the kernel in front of it is unfinished

  const int m0 = sums.first_channel() + dev::lane() / 4;
  const int n0 = sums.first_column() + dev::lane() % 4 * 2;
#pragma unroll
  for (int i = 0; i < Sums::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::kColumnTiles; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* address = part + (m0 + i * 16 + h * 8) * kWidth + n0 + j * 8;
        dev::store_global8(address, sums.sum[i][j][2 * h], sums.sum[i][j][2 * h + 1]);
      }
    }
  }
}

// One block per (matrix, channel tile, split).
template <typename T, int kWidth>
PUMA_DEVICE void weight_gradient(const WeightGradientArguments& p) {
  const int split = static_cast<int>(dev::block() % p.splits);
  const int rest = static_cast<int>(dev::block() / p.splits);
  const bool is_up = rest >= p.channel_tiles;
  GradientOperands operands;
  operands.a = is_up ? p.grad : p.tokens;
  operands.a_is_compact = is_up && p.grad_is_compact;
  operands.b = is_up ? p.hidden : p.delta;
  operands.b_width = is_up ? p.width : kWidth;
  operands.b_is_scaled = is_up && p.list->alike == 0;  // else the sum is
  operands.are_complete = is_up && !p.grad_is_compact;
  weight_gradient_part<T, kWidth>(p, operands, rest % p.channel_tiles, split,
                                  p.parts + dev::block() * (kChannelTile * kWidth));
}

template <typename T>
PUMA_DEVICE void store_gradient(const WeightGradientArguments& p, void* gradient, int64_t at, float value) {
  if (p.gradients_are_float) {
    static_cast<float*>(gradient)[at] = value;
  } else {
    dev::from_arithmetic(value, static_cast<T*>(gradient)[at]);
  }
}

// One block per (matrix, 32 channels, 32 columns of r), four neighbouring columns per thread: adds the parts in the
// order of the splits.
template <typename T, int kWidth>
PUMA_DEVICE void weight_gradient_sum(const WeightGradientArguments& p) {
  constexpr int kTilesPerPart = kChannelTile / kReduceTile;
  constexpr int kWidthTiles = kWidth / kReduceTile;
  constexpr int kStride = kReduceTile + 1;
  constexpr int kAtOnce = 8;  // loads under way
  static_assert(kReduceThreads * 4 == kReduceTile * kReduceTile);
  auto* transposed = reinterpret_cast<float*>(dev::shared_memory());
  dev::wait_for_previous_kernel();

  int rest = static_cast<int>(dev::block());
  const int width_tile = rest % kWidthTiles;
  rest /= kWidthTiles;
  const int in_part = rest % kTilesPerPart;
  rest /= kTilesPerPart;
  const int channel_tile = rest % p.channel_tiles;
  const bool is_up = rest >= p.channel_tiles;

  const int x = dev::thread() % (kReduceTile / 4) * 4, y = dev::thread() / (kReduceTile / 4);
  const int row = in_part * kReduceTile + y, column = width_tile * kReduceTile + x;
  constexpr int64_t kPart = kChannelTile * kWidth;
  const float* parts = p.parts + rest * p.splits * kPart + row * kWidth + column;
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int split = 0; split < p.splits; split += kAtOnce) {
    Bytes16 unit[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      unit[i] = split + i < p.splits ? dev::load_written16(parts + (split + i) * kPart) : Bytes16{{0, 0, 0, 0}};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] += dev::bits_float(unit[i].word[e]);
    }
  }
  const int64_t first_channel = static_cast<int64_t>(channel_tile) * kChannelTile + in_part * kReduceTile;
  if (is_up) {
    const float factor = p.list->alike != 0 ? p.factors[0] : 1.0f;
#pragma unroll
    for (int e = 0; e < 4; ++e) dev::store_shared(transposed + (x + e) * kStride + y, sum[e] * factor);
  } else if (first_channel + y < p.channels) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column + e < p.width) {
        store_gradient<T>(p, p.grad_down, (first_channel + y) * p.width + column + e, sum[e]);
      }
    }
  }
  if (!is_up) return;
  dev::sync_block();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t channel = first_channel + dev::thread() % kReduceTile;
    const int in_tile = dev::thread() / kReduceTile + i * (kReduceThreads / kReduceTile);
    const int up_row = width_tile * kReduceTile + in_tile;
    if (channel < p.channels && up_row < p.width) {
      const float v = dev::load_shared(transposed + in_tile * kStride + dev::thread() % kReduceTile);
      store_gradient<T>(p, p.grad_up, static_cast<int64_t>(up_row) * p.channels + channel, v);
    }
  }
}

}  // namespace puma
