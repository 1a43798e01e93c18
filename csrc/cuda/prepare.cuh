// What precedes the adapter's main kernels, in one launch: the kept samples are listed, and the two weight matrices are
// packed as the tensor cores read them, padded with zeros to whole groups, for the backward as well if there will be
// one.
#pragma once

#include <cmath>

#include "fragment.cuh"
#include "problem.h"

namespace puma {

// A weight matrix as operand b of a product: element (k, n) at data[k * k_stride + n * n_stride].
struct WeightView {
  const void* data;  // (T), or float
  bool is_float;
  int64_t k_stride;
  int64_t n_stride;
  int64_t k_size;
  int64_t n_size;
};

// The two matrices of a kernel's products.
struct Packing {
  WeightView first;   // C x r
  WeightView second;  // r x C
  Bytes16* packed;    // first, then second; see PackedWeights
};

struct PrepareArguments {
  const void* gate;   // (samples,), float, or double for the general path; null: all samples are kept
  bool gate_is_double;
  int64_t samples;
  SampleList* list;
  int32_t* order;     // (samples,): the kept samples in ascending order, then the dropped ones in descending order
  float* factors;     // (samples,): gate * scale of each, in that order. Or null; else both end in zeros, whole units
  float scale;
  Packing packings[2];  // for the forward and the backward
  int packing_count;
  int64_t padded_channels;
  int64_t pack_blocks;  // blocks 0 .. pack_blocks - 1 pack, block pack_blocks lists the samples
};

inline constexpr int kPrepareThreads = 256;
inline constexpr int kPrepareSharedBytes = kPrepareThreads / 32 * 24;  // a count and a range of gates of each warp

// Layout of the packed weights, in units. Both matrices are cut along C into steps of two groups; a step of either one
// takes kUnitsPerStep<kWidth> units, so that both stream through the same buffers.
template <typename T, int kWidth>
struct PackedWeights {
  static constexpr int kStepColumns = 2 * kGroup<T>;
  static constexpr int kUnitsPerStep = kWidth * 8;  // 2 groups x kWidth / 8 tiles x 32 lanes
  static constexpr int kStepBytes = kUnitsPerStep * 16;
};

// What a unit holds: elements (k + pair_stride * (e / 2) + e % 2, n) of the matrix for e = 0 .. kElements<T> - 1.
struct PackedUnit {
  int k;
  int n;
  int pair_stride;
};

// The column that column `column` of tile `tile` of a product stands for, see fragment.cuh.
template <typename T>
PUMA_DEVICE int column_of(int tile, int column) {
  const int group = tile / kTilesPerGroup<T>, in_group = tile % kTilesPerGroup<T>;
  return group * kGroup<T> + kElements<T> * (column / 2) + 2 * in_group + column % 2;
}

// Unit `index` of a run of products over groups of k, with n_tiles tiles of columns; k and n within the run.
template <typename T>
PUMA_DEVICE PackedUnit packed_unit(int index, int n_tiles) {
  if constexpr (uses_warpgroups<T>) {
    // Cores of 8 columns x 8 k: [group of k][half][low or high k][tile][column].
    const int column = index % 8, tile = index / 8 % n_tiles, rest = index / 8 / n_tiles;
    const int high = rest % 2, half = rest / 2 % 2, group = rest / 4;
    return {group * kGroup<T> + 4 * half + 2 * high, column_of<T>(tile, column), kElements<T>};
  } else {
    const int lane = index % 32, tile = index / 32 % n_tiles, group = index / 32 / n_tiles;
    return {group * kGroup<T> + lane % 4 * kElements<T>, column_of<T>(tile, lane / 4), 2};
  }
}

PUMA_DEVICE double gate_of(const PrepareArguments& p, int64_t sample) {
  if (p.gate == nullptr) return 1.0;
  return p.gate_is_double ? static_cast<const double*>(p.gate)[sample] : static_cast<const float*>(p.gate)[sample];
}

// One block. Ballots give each thread its rank, in the order of the samples whatever the schedule.
PUMA_DEVICE void list_samples(const PrepareArguments& p) {
  constexpr int kWarps = kPrepareThreads / 32;
  auto* kept_in_warp = reinterpret_cast<int32_t*>(dev::shared_memory());
  const uint32_t lanes_below = (1u << dev::lane()) - 1u;

  int32_t kept = 0;
  double lowest = INFINITY, highest = -INFINITY;  // of the open gates this thread sees; NaN is in neither
  bool alike = true;
  for (int64_t base = 0; base < p.samples; base += kPrepareThreads) {
    const int64_t sample = base + dev::thread();
    const double gate = sample < p.samples ? gate_of(p, sample) : 0.0;
    const bool open = !(gate == 0.0);  // NaN is open
    if (open) {
      if (gate < lowest) lowest = gate;
      if (gate > highest) highest = gate;
      alike = alike && gate == gate;
    }
    const uint32_t votes = dev::ballot(open);
    if (dev::lane() == 0) dev::store_shared(kept_in_warp + dev::warp(), static_cast<int32_t>(dev::popcount(votes)));
    dev::sync_block();
    int32_t rank = kept + dev::popcount(votes & lanes_below);
    for (int w = 0; w < kWarps; ++w) {
      const int32_t count = dev::load_shared(kept_in_warp + w);
      if (w < dev::warp()) rank += count;
      kept += count;
    }
    dev::sync_block();
    if (sample < p.samples) {
      // From the end, so that how many are kept need not be known.
      const int64_t place = open ? rank : p.samples - 1 - (sample - rank);
      p.order[place] = static_cast<int32_t>(sample);
      if (p.factors != nullptr) p.factors[place] = static_cast<float>(gate) * p.scale;
    }
  }

  // So that what is handed on has no byte that depends on what was there before.
  const int64_t padding = p.samples + dev::thread();
  if (p.factors != nullptr && padding < (p.samples + 3) / 4 * 4) {
    p.order[padding] = 0;
    p.factors[padding] = 0.0f;
  }

  auto* range_of_warp = reinterpret_cast<double*>(dev::shared_memory() + kWarps * 8);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const double other_lowest = dev::shuffle_xor(lowest, mask), other_highest = dev::shuffle_xor(highest, mask);
    if (other_lowest < lowest) lowest = other_lowest;
    if (other_highest > highest) highest = other_highest;
  }
  alike = dev::ballot(alike) == 0xffffffffu;
  if (dev::lane() == 0) {
    dev::store_shared(range_of_warp + 2 * dev::warp(), alike ? lowest : NAN);
    dev::store_shared(range_of_warp + 2 * dev::warp() + 1, highest);
  }
  dev::sync_block();
  if (dev::thread() != 0) return;
  bool all_alike = true;
  for (int w = 0; w < kWarps; ++w) {
    const double warp_lowest = dev::load_shared(range_of_warp + 2 * w);
    const double warp_highest = dev::load_shared(range_of_warp + 2 * w + 1);
    all_alike = all_alike && warp_lowest == warp_lowest;
    if (warp_lowest < lowest) lowest = warp_lowest;
    if (warp_highest > highest) highest = warp_highest;
  }
  *p.list = {kept, all_alike && lowest >= highest ? 1 : 0, 0, 0};  // none kept: infinity >= -infinity
}

// A unit of T of a matrix of S.
template <typename T, typename S>
PUMA_DEVICE Bytes16 pack_unit_of(const WeightView& weight, int64_t k, int64_t n, int pair_stride) {
  const S* data = static_cast<const S*>(weight.data) + k * weight.k_stride + n * weight.n_stride;
  float v[kElements<T>];
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) {
    const int step = pair_stride * (e / 2) + e % 2;
    v[e] = n < weight.n_size && k + step < weight.k_size ? dev::to_arithmetic(data[step * weight.k_stride]) : 0.0f;
  }
  return make_unit<T>(v);
}

template <typename T>
PUMA_DEVICE Bytes16 pack_unit(const WeightView& weight, int64_t k, int64_t n, int pair_stride) {
  return weight.is_float ? pack_unit_of<T, float>(weight, k, n, pair_stride)
                         : pack_unit_of<T, T>(weight, k, n, pair_stride);
}

// The matrices: first [step][unit], then second [step][unit]. A step of the first is 2 groups of C by all of r, one of
// the second all of r by 2 groups of C; the products of a step go through k group by group.
template <typename T, int kWidth>
PUMA_DEVICE void prepare(const PrepareArguments& p) {
  dev::wait_for_previous_kernel();
  dev::let_next_kernel_begin();  // whose inputs, other than from here, are complete
  if (dev::block() == p.pack_blocks) {
    list_samples(p);
    return;
  }
  using Packed = PackedWeights<T, kWidth>;
  constexpr int kGroupTiles = kTilesPerGroup<T>;
  const int64_t steps = p.padded_channels / Packed::kStepColumns;
  const int64_t units = 2 * steps * Packed::kUnitsPerStep;
  const int64_t stride = p.pack_blocks * kPrepareThreads;
  for (int64_t i = dev::block() * kPrepareThreads + dev::thread(); i < p.packing_count * units; i += stride) {
    const bool second = i >= units;
    const Packing& packing = p.packings[second ? 1 : 0];
    const int64_t unit = second ? i - units : i, step = unit / Packed::kUnitsPerStep;
    const int index = static_cast<int>(unit % Packed::kUnitsPerStep);
    if (step < steps) {
      const PackedUnit u = packed_unit<T>(index, kWidth / 8);
      packing.packed[unit] = pack_unit<T>(packing.first, step * Packed::kStepColumns + u.k, u.n, u.pair_stride);
    } else if constexpr (uses_warpgroups<T>) {
      const PackedUnit u = packed_unit<T>(index, 2 * kGroupTiles);
      const int64_t n = (step - steps) * Packed::kStepColumns + u.n;
      packing.packed[unit] = pack_unit<T>(packing.second, u.k, n, u.pair_stride);
    } else {
      // One group of C after the other, so that few accumulators are needed at once.
      constexpr int kHalf = Packed::kUnitsPerStep / 2;
      const PackedUnit u = packed_unit<T>(index % kHalf, kGroupTiles);
      const int64_t n = (step - steps) * Packed::kStepColumns + index / kHalf * kGroup<T> + u.n;
      packing.packed[unit] = pack_unit<T>(packing.second, u.k, n, u.pair_stride);
    }
  }
}

}  // namespace puma
