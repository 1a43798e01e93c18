// Gradients of the adapter's weights: sums over the rows of kept samples of
//
//   grad_down (C x r) = tokens^T @ delta              grad_up^T (C x r) = grad^T @ (factor * hidden)
//
// Both are computed as C x r. The rows are split over blocks; each block leaves its part in a float workspace, and a
// second kernel adds the parts in their order. No atomics: the same input gives the same bits on the same machine.
#pragma once

#include "adapter.cuh"

namespace puma {

struct WeightGradientArguments {
  const void* tokens;  // (T)
  const void* grad;    // (T), or float if grad_is_float
  bool grad_is_float;
  const void* hidden;  // (T), compacted rows of `width`
  const void* delta;   // (T), compacted rows of kWidth
  const float* gate;
  const int32_t* kept;
  const int32_t* order;
  float* parts;     // [matrix 2][channel tile][split][kChannelTile][kWidth]
  void* grad_down;  // (T) C x r
  void* grad_up;    // (T) r x C
  int64_t tokens_per_sample;
  int64_t channels;
  int channel_tiles;
  int splits;
  int width;
  float scale;
};

inline constexpr int kChannelTile = 128;
inline constexpr int kGradientThreads = 256;  // 8 warps: 4 along C, 2 along r
inline constexpr int kReduceThreads = 256;
inline constexpr int kReduceTile = 32;

// Shared memory of one buffer: kRows rows of both operands, each row padded against bank conflicts.
template <typename T, int kWidth>
struct GradientTile {
  // 32 KB per multiprocessor are under way while the previous rows are multiplied: about what hides the latency.
  static constexpr int kRows = 128 / static_cast<int>(sizeof(T));
  // 16-bit: the eight rows an ldmatrix reads start in different banks. float: four rows are 8 banks apart.
  static constexpr int kPadding = 8;
  static constexpr int kStrideA = kChannelTile + kPadding;
  static constexpr int kStrideB = kWidth + kPadding;
  static constexpr int kBufferBytes = kRows * (kStrideA + kStrideB) * static_cast<int>(sizeof(T));
  static constexpr int kSharedBytes = 2 * kBufferBytes;
  static constexpr int kUnitsPerThreadA = kRows * kChannelTile / kElements<T> / kGradientThreads;
  static constexpr int kUnitsPerThreadB = kRows * kWidth / kElements<T> / kGradientThreads;
};

// Walks over compacted rows in strides and knows the sample; avoids a division per row.
class RowWalk {
 public:
  PUMA_DEVICE RowWalk(const WeightGradientArguments& p, int64_t row, int64_t end)
      : row_(row), end_(end), rank_(row / p.tokens_per_sample), token_(row - rank_ * p.tokens_per_sample) {}
  PUMA_DEVICE bool valid() const { return row_ < end_; }
  PUMA_DEVICE int64_t compact() const { return row_; }
  PUMA_DEVICE int64_t full(const WeightGradientArguments& p) const { return sample(p) * p.tokens_per_sample + token_; }
  PUMA_DEVICE float factor(const WeightGradientArguments& p) const {
    return p.gate == nullptr ? p.scale : p.gate[sample(p)] * p.scale;
  }
  PUMA_DEVICE void advance(const WeightGradientArguments& p, int rows) {
    row_ += rows;
    token_ += rows;
    while (token_ >= p.tokens_per_sample) {
      token_ -= p.tokens_per_sample;
      ++rank_;
    }
  }

 private:
  PUMA_DEVICE int64_t sample(const WeightGradientArguments& p) const { return p.order[rank_]; }
  int64_t row_, end_, rank_, token_;
};

// acc (32 x kWidth / 2 of this warp) += A^T B over the kRows rows of one buffer.
template <typename T, int kWidth>
PUMA_DEVICE void multiply_tile(const T* a, const T* b, float (&acc)[2][kWidth / 16][4]) {
  using Tile = GradientTile<T, kWidth>;
  const int lane = dev::lane();
  const int m0 = dev::warp() % 4 * 32;
  const int n0 = dev::warp() / 4 * (kWidth / 2);
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < Tile::kRows; k += 16) {
      Bytes16 fragment_a[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // matrices: (k, m), (k, m + 8), (k + 8, m), (k + 8, m + 8)
        const int row = k + lane / 16 * 8 + lane % 8;
        fragment_a[i] = dev::load_matrices_transposed(a + row * Tile::kStrideA + m0 + i * 16 + lane / 8 % 2 * 8);
      }
#pragma unroll
      for (int j = 0; j < kWidth / 16; j += 2) {  // matrices: (k, n), (k + 8, n), (k, n + 8), (k + 8, n + 8)
        const int row = k + lane / 8 % 2 * 8 + lane % 8;
        const Bytes16 fragment_b = dev::load_matrices_transposed(b + row * Tile::kStrideB + n0 + j * 8 + lane / 16 * 8);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t* fa = fragment_a[i].word;
          dev::mma_16x8x16(T{}, acc[i][j], fa[0], fa[1], fa[2], fa[3], fragment_b.word[0], fragment_b.word[1]);
          dev::mma_16x8x16(T{}, acc[i][j + 1], fa[0], fa[1], fa[2], fa[3], fragment_b.word[2], fragment_b.word[3]);
        }
      }
    }
  } else {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int k = 0; k < Tile::kRows; k += 8) {
      uint32_t fragment_a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          fragment_a[i][w] =
              dev::float_bits(dev::load_shared(a + (k + t + w / 2 * 4) * Tile::kStrideA + m0 + i * 16 + g + w % 2 * 8));
        }
      }
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) {
        uint32_t fragment_b[2];
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          fragment_b[w] = dev::float_bits(dev::load_shared(b + (k + t + w * 4) * Tile::kStrideB + n0 + j * 8 + g));
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) mma_float(acc[i][j], fragment_a[i], fragment_b);
      }
    }
  }
}

// One matrix as the kernel sees it: sum over rows of a^T (along C) times b (along r).
struct GradientOperands {
  const void* a;      // rows of `channels` elements of all samples, of type T, or float if a_is_float
  bool a_is_float;
  const void* b;      // (T), compacted rows of b_width elements
  int b_width;
  bool b_is_scaled;   // by the row's factor
};

// One block's part. Rows are fetched one chunk ahead.
template <typename T, int kWidth>
PUMA_DEVICE void weight_gradient_part(const WeightGradientArguments& p, const GradientOperands& operands,
                                      int channel_tile, int split, float* part) {
  using Tile = GradientTile<T, kWidth>;
  constexpr int kUnitsPerRowA = kChannelTile / kElements<T>;
  constexpr int kUnitsPerRowB = kWidth / kElements<T>;
  constexpr int kRowsPerLoadA = kGradientThreads / kUnitsPerRowA;
  constexpr int kRowsPerLoadB = kGradientThreads / kUnitsPerRowB;

  const int64_t rows = *p.kept * p.tokens_per_sample;
  const int64_t chunks_in_all = (rows + Tile::kRows - 1) / Tile::kRows;
  const int64_t chunks_per_split = (chunks_in_all + p.splits - 1) / p.splits;
  const int64_t begin = split * chunks_per_split * Tile::kRows;
  const int64_t end = begin + chunks_per_split * Tile::kRows < rows ? begin + chunks_per_split * Tile::kRows : rows;

  float acc[2][kWidth / 16][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.0f;
    }
  }

  const int row_a = dev::thread() / kUnitsPerRowA, column_a = dev::thread() % kUnitsPerRowA * kElements<T>;
  const int row_b = dev::thread() / kUnitsPerRowB, column_b = dev::thread() % kUnitsPerRowB * kElements<T>;
  const int64_t channel = static_cast<int64_t>(channel_tile) * kChannelTile + column_a;
  const bool rows_aligned = operands.b_width % kElements<T> == 0;
  RowWalk walk_a(p, begin + row_a, end);
  RowWalk walk_b(p, begin + row_b, end);
  Stored<float, T> ahead_a[Tile::kUnitsPerThreadA];  // of 16-bit elements only the first unit is used
  Bytes16 ahead_b[Tile::kUnitsPerThreadB];
  float factor_b[Tile::kUnitsPerThreadB];

  const auto load = [&] {
#pragma unroll
    for (int i = 0; i < Tile::kUnitsPerThreadA; ++i) {
      ahead_a[i].clear();
      if (walk_a.valid() && channel < p.channels) {
        const int64_t offset = walk_a.full(p) * p.channels + channel;
        if (operands.a_is_float) {
          ahead_a[i].load(static_cast<const float*>(operands.a) + offset);
        } else {
          ahead_a[i].unit[0] = dev::load_global16(static_cast<const T*>(operands.a) + offset);
        }
      }
      walk_a.advance(p, kRowsPerLoadA);
    }
#pragma unroll
    for (int i = 0; i < Tile::kUnitsPerThreadB; ++i) {
      ahead_b[i] = Bytes16{{0, 0, 0, 0}};
      factor_b[i] = 1.0f;
      if (walk_b.valid()) {
        const T* row = static_cast<const T*>(operands.b) + walk_b.compact() * operands.b_width;
        ahead_b[i] = load_row_unit(row, column_b, operands.b_width, rows_aligned);
        if (operands.b_is_scaled) factor_b[i] = walk_b.factor(p);
      }
      walk_b.advance(p, kRowsPerLoadB);
    }
  };
  const auto buffer = [](int index) { return reinterpret_cast<T*>(dev::shared_memory() + index * Tile::kBufferBytes); };
  const auto store = [&](int index) {
    T* a = buffer(index);
    T* b = a + Tile::kRows * Tile::kStrideA;
#pragma unroll
    for (int i = 0; i < Tile::kUnitsPerThreadA; ++i) {
      T* address = a + (row_a + i * kRowsPerLoadA) * Tile::kStrideA + column_a;
      const Bytes16 unit = operands.a_is_float ? ahead_a[i].as_operand() : ahead_a[i].unit[0];
      dev::store_shared(reinterpret_cast<Bytes16*>(address), unit);
    }
#pragma unroll
    for (int i = 0; i < Tile::kUnitsPerThreadB; ++i) {
      T* address = b + (row_b + i * kRowsPerLoadB) * Tile::kStrideB + column_b;
      float v[kElements<T>];
#pragma unroll
      for (int e = 0; e < kElements<T>; ++e) v[e] = factor_b[i] * unit_element<T>(ahead_b[i], e);
      dev::store_shared(reinterpret_cast<Bytes16*>(address), make_unit<T>(v));
    }
  };

  const int chunks = end > begin ? static_cast<int>((end - begin + Tile::kRows - 1) / Tile::kRows) : 0;
  if (chunks > 0) {
    load();
    store(0);
  }
  dev::sync_block();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const bool more = chunk + 1 < chunks;
    if (more) load();
    const T* a = buffer(chunk % 2);
    multiply_tile<T, kWidth>(a, a + Tile::kRows * Tile::kStrideA, acc);
    if (more) store((chunk + 1) % 2);  // last read before the previous barrier
    dev::sync_block();
  }

  const int m0 = dev::warp() % 4 * 32 + dev::lane() / 4;
  const int n0 = dev::warp() / 4 * (kWidth / 2) + dev::lane() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* address = part + (m0 + i * 16 + h * 8) * kWidth + n0 + j * 8;
        dev::store_global8(address, acc[i][j][2 * h], acc[i][j][2 * h + 1]);
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
  operands.a_is_float = sizeof(T) < sizeof(float) && is_up && p.grad_is_float;
  operands.b = is_up ? p.hidden : p.delta;
  operands.b_width = is_up ? p.width : kWidth;
  operands.b_is_scaled = is_up;
  weight_gradient_part<T, kWidth>(p, operands, rest % p.channel_tiles, split,
                                  p.parts + dev::block() * (kChannelTile * kWidth));
}

// One block per (matrix, 32 channels, 32 columns of r): adds the parts in the order of the splits.
template <typename T, int kWidth>
PUMA_DEVICE void weight_gradient_sum(const WeightGradientArguments& p) {
  constexpr int kTilesPerPart = kChannelTile / kReduceTile;
  constexpr int kWidthTiles = kWidth / kReduceTile;
  constexpr int kStride = kReduceTile + 1;
  auto* transposed = reinterpret_cast<float*>(dev::shared_memory());

  int rest = static_cast<int>(dev::block());
  const int width_tile = rest % kWidthTiles;
  rest /= kWidthTiles;
  const int in_part = rest % kTilesPerPart;
  rest /= kTilesPerPart;
  const int channel_tile = rest % p.channel_tiles;
  const bool is_up = rest >= p.channel_tiles;

  const int x = dev::thread() % kReduceTile, y = dev::thread() / kReduceTile;
  constexpr int kRowsAtOnce = kReduceThreads / kReduceTile;
  const float* parts = p.parts + static_cast<int64_t>(rest) * p.splits * (kChannelTile * kWidth);
#pragma unroll
  for (int i = 0; i < kReduceTile; i += kRowsAtOnce) {
    const int row = in_part * kReduceTile + y + i;
    const int column = width_tile * kReduceTile + x;
    const int index = row * kWidth + column;
    float sum = 0.0f;
    for (int s = 0; s < p.splits; ++s) sum += parts[static_cast<int64_t>(s) * (kChannelTile * kWidth) + index];
    if (is_up) {
      dev::store_shared(transposed + x * kStride + y + i, sum);
    } else {
      const int64_t channel = static_cast<int64_t>(channel_tile) * kChannelTile + row;
      if (channel < p.channels && column < p.width) {
        dev::from_arithmetic(sum, static_cast<T*>(p.grad_down)[channel * p.width + column]);
      }
    }
  }
  if (!is_up) return;
  dev::sync_block();
#pragma unroll
  for (int i = 0; i < kReduceTile; i += kRowsAtOnce) {
    const int column = width_tile * kReduceTile + y + i;
    const int64_t channel = static_cast<int64_t>(channel_tile) * kChannelTile + in_part * kReduceTile + x;
    if (channel < p.channels && column < p.width) {
      dev::from_arithmetic(dev::load_shared(transposed + (y + i) * kStride + x),
                           static_cast<T*>(p.grad_up)[column * p.channels + channel]);
    }
  }
}

}  // namespace puma
