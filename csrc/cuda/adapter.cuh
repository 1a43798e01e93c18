// The adapter's two chained products, forward and backward, in one kernel.
//
//   forward:   hidden = relu(tokens @ down);          out = residual + branch + factor * hidden @ up
//   backward:  delta = (hidden > 0) * factor * (grad @ up^T);   grad_tokens = delta @ down^T
//
// Only rows of kept samples are computed, compacted: row i is row i % N of the (i / N)-th kept sample. A warp owns 16
// rows from input to output (four together 64, where they multiply together); the accumulators of the first product are the second one's operand, in registers. What is
// multiplied streams through shared memory (feed.cuh). Dropped samples are copied (forward) or zeroed (backward) by the
// warps that have no rows left, meanwhile (dropped.cuh).
#pragma once

#include "feed.cuh"

namespace puma {

// As many warps as the registers allow without spilling: float operands take twice the registers.
template <typename T, typename R, int kWidth, bool kBackward>
inline constexpr int kAdapterWarps = sizeof(T) == 4 || (kWidth > 64 && kBackward && sizeof(R) == 4) ? 8 : 12;

// A unit of a row of `width` elements from column on; rows need not be aligned.
template <typename T>
PUMA_DEVICE Bytes16 load_row_unit(const T* row, int column, int width, bool aligned) {
  if (aligned) return column < width ? dev::load_global16(row + column) : Bytes16{{0, 0, 0, 0}};
  float v[kElements<T>];
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) v[e] = column + e < width ? dev::to_arithmetic(row[column + e]) : 0.0f;
  return make_unit<T>(v);
}

template <typename T>
PUMA_DEVICE void store_row_unit(T* row, int column, int width, bool aligned, const Bytes16& unit) {
  if (aligned) {
    if (column < width) dev::store_global16(row + column, unit);
    return;
  }
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) {
    if (column + e < width) dev::from_arithmetic(unit_element<T>(unit, e), row[column + e]);
  }
}

// Where the input goes as T, in the backward on a wider R: compacted rows.
template <typename T, typename R, bool kBackward>
struct NarrowRows {
  T* row[2];

  PUMA_DEVICE NarrowRows(const AdapterArguments& p, int first_row, int kept_rows) {
    if constexpr (kBackward && !same_type<R, T>) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t compact = first_row + dev::lane() / 4 + 8 * h;
        const bool wanted = p.narrow_input != nullptr && compact < kept_rows;
        row[h] = wanted ? static_cast<T*>(p.narrow_input) + compact * p.channels : nullptr;
      }
    }
  }
  PUMA_DEVICE void store(const AdapterArguments& p, int h, int column, const Bytes16& unit) const {
    if constexpr (kBackward && !same_type<R, T>) {
      column += dev::lane() % 4 * kElements<T>;
      if (row[h] != nullptr && column < p.channels) dev::store_global16(row[h] + column, unit);
    }
  }
};

// The activation of one tile, or its gradient: the second product's operand.
template <typename T, int kWidth>
using HiddenUnits = Bytes16[kWidth / kGroup<T>][2];

// sums (16 x kWidth) = input @ first weights.
template <typename T, typename R, int kWidth, bool kBackward>
PUMA_DEVICE void first_product(const AdapterArguments& p, int steps, Feed<T, R, kWidth, kBackward>& feed,
                               const NarrowRows<T, R, kBackward>& narrow, float (&sums)[kWidth / 8][4]) {
  using In = typename Feed<T, R, kWidth, kBackward>::In;
  constexpr int kTiles = kWidth / 8;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] = 0.0f;
  }
  for (int step = 0; step < steps; ++step) {
    feed.next();
    Bytes16 operand[2][2];
#pragma unroll
    for (int q = 0; q < 2; ++q) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        Stored<In, T> input;
        input.load_shared(feed.units() + 32 * (2 * q + h) * Stored<In, T>::kUnits);
        operand[q][h] = input.as_operand();
        narrow.store(p, h, step * PackedWeights<T, kWidth>::kStepColumns + q * kGroup<T>, operand[q][h]);
      }
    }
    if constexpr (uses_warpgroups<T>) {
      dev::warpgroup_begin();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Bytes16* b = feed.weights() + i * (2 * 8 * kTiles);
        dev::warpgroup_product(T{}, sums, fragment_half(operand[i / 2], i % 2).word, b, true);
      }
      dev::warpgroup_end(sums);
    } else {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        in_short_run<T>(sums[j], [&](float (&d)[4]) {
#pragma unroll
          for (int q = 0; q < 2; ++q) {
            const Bytes16 b = dev::load_shared(feed.weights() + (q * kTiles + j) * 32 + dev::lane());
            mma_group<T>(d, operand[q][0], operand[q][1], b);
          }
        });
      }
    }
  }
}

// The activation, or its gradient: rounded to T and saved.
template <typename T, int kWidth, bool kBackward>
PUMA_DEVICE void activate(const AdapterArguments& p, const RowOfLane (&row)[2], const float (&sums)[kWidth / 8][4],
                          HiddenUnits<T, kWidth>& hidden) {
  const bool rows_aligned = p.width % kElements<T> == 0;
#pragma unroll
  for (int g = 0; g < kWidth / kGroup<T>; ++g) {
    const int column = g * kGroup<T> + dev::lane() % 4 * kElements<T>;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float v[kElements<T>];
      accumulator_row<T>(sums + g * kTilesPerGroup<T>, h, v);
      if constexpr (kBackward) {
        Bytes16 saved{{0, 0, 0, 0}};
        if (row[h].valid) {
          const T* mask = static_cast<const T*>(p.mask) + static_cast<int64_t>(row[h].compact) * p.width;
          saved = load_row_unit(mask, column, p.width, rows_aligned);
        }
#pragma unroll
        for (int e = 0; e < kElements<T>; ++e) {
          v[e] = unit_element<T>(saved, e) > 0.0f ? v[e] * row[h].factor : 0.0f;
        }
      } else {
#pragma unroll
        for (int e = 0; e < kElements<T>; ++e) v[e] = v[e] < 0.0f ? 0.0f : v[e];  // NaN stays
      }
      hidden[g][h] = make_unit<T>(v);
      if (p.activation != nullptr && row[h].valid) {
        const int width = kBackward ? kWidth : p.width;
        T* activation = static_cast<T*>(p.activation) + static_cast<int64_t>(row[h].compact) * width;
        store_row_unit(activation, column, width, kBackward || rows_aligned, hidden[g][h]);
      }
    }
  }
}

// product (16 x kTiles * 8) = hidden @ weights, which begin with the packed unit `weights`.
template <typename T, int kWidth, int kTiles>
PUMA_DEVICE void multiply_hidden(const HiddenUnits<T, kWidth>& hidden, const Bytes16* weights,
                                 float (&product)[kTiles][4]) {
  constexpr int kWidthGroups = kWidth / kGroup<T>;
  if constexpr (uses_warpgroups<T>) {
    dev::warpgroup_begin();
#pragma unroll
    for (int i = 0; i < 2 * kWidthGroups; ++i) {
      const Bytes16* b = weights + i * (2 * 8 * kTiles);
      dev::warpgroup_product(T{}, product, fragment_half(hidden[i / 2], i % 2).word, b, i > 0);
    }
    dev::warpgroup_end(product);
  } else {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) product[j][i] = 0.0f;
    }
#pragma unroll
    for (int g = 0; g < kWidthGroups; ++g) {
      const Bytes16 upper = split_here<T>(hidden[g][0]), lower = split_here<T>(hidden[g][1]);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const Bytes16 b = dev::load_shared(weights + (g * kTiles + j) * 32 + dev::lane());
        in_short_run<T>(product[j], [&](float (&d)[4]) { mma_group<T>(d, upper, lower, b); });
      }
    }
  }
}

// output = hidden @ second weights, in the forward residual + branch + factor times that; a step of columns at a time.
template <typename T, typename R, int kWidth, bool kBackward>
PUMA_DEVICE void second_product(const AdapterArguments& p, int steps, Feed<T, R, kWidth, kBackward>& feed,
                                const RowOfLane (&row)[2], const HiddenUnits<T, kWidth>& hidden) {
  using Out = std::conditional_t<kBackward, T, R>;
  using Packed = PackedWeights<T, kWidth>;
  constexpr int kGroupTiles = kTilesPerGroup<T>;
  constexpr int kGroupsAtOnce = uses_warpgroups<T> ? 2 : 1;
  Out* out[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) out[h] = static_cast<Out*>(p.output) + row[h].full * p.channels + feed.lane_column();
  for (int step = 0; step < steps; ++step) {
    feed.next();
    const Bytes16* units = feed.units();
#pragma unroll
    for (int q0 = 0; q0 < 2; q0 += kGroupsAtOnce) {
      float product[kGroupsAtOnce * kGroupTiles][4];
      multiply_hidden<T, kWidth>(hidden, feed.weights() + q0 * (Packed::kUnitsPerStep / 2), product);
#pragma unroll
      for (int q = q0; q < q0 + kGroupsAtOnce; ++q) {
        const int column = step * Packed::kStepColumns + q * kGroup<T>;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float v[kElements<T>];
          accumulator_row<T>(product + (q - q0) * kGroupTiles, h, v);
          if constexpr (!kBackward) {
            Stored<R, T> residual;
            residual.load_shared(units + 32 * (2 * q + h) * Stored<R, T>::kUnits);
#pragma unroll
            for (int e = 0; e < kElements<T>; ++e) v[e] = residual.element(e) + row[h].factor * v[e];
            if (p.branch != nullptr) {
              BranchUnit<T, R> branch;
              branch.load_shared(p, units + 32 * feed.branch_unit(p, 2 * q + h));
#pragma unroll
              for (int e = 0; e < kElements<T>; ++e) v[e] += branch.element(p, e);
            }
          }
          Stored<Out, T> result;
          result.set(v);
          if (row[h].valid && column + feed.lane_column() < p.channels) result.store(out[h] + column);
        }
      }
    }
  }
}

// T: type of tokens, weights and activation; R: type of the residual stream; kWidth: r, padded.
template <typename T, typename R, int kWidth, bool kBackward>
PUMA_DEVICE void adapter(const AdapterArguments& p) {
  using Packed = PackedWeights<T, kWidth>;
  dev::let_next_kernel_begin();
  dev::wait_for_previous_kernel();
  // Behind the ring.
  auto* counter = reinterpret_cast<int32_t*>(
      dev::shared_memory() + p.stages * (Packed::kStepBytes + dev::threads() * p.lane_units * 16));
  if (dev::thread() == 0) dev::store_shared(counter, 0);
  dev::sync_block();

  const Schedule<kWarpsTogether<T>> schedule(p, Packed::kStepColumns);
  const int passes = schedule.passes();
  if (passes > 0) {
    Feed<T, R, kWidth, kBackward> feed(p, schedule);
    for (int pass = 0; pass < passes; ++pass) {
      const int first_row = schedule.first_row(pass);
      float sums[kWidth / 8][4];
      first_product<T, R, kWidth, kBackward>(
          p, schedule.steps, feed, NarrowRows<T, R, kBackward>(p, first_row, schedule.kept_rows), sums);
      const int lane_row = first_row + dev::lane() / 4;
      const RowOfLane row[2] = {{p, lane_row, schedule.kept_rows}, {p, lane_row + 8, schedule.kept_rows}};
      HiddenUnits<T, kWidth> hidden;
      activate<T, kWidth, kBackward>(p, row, sums, hidden);
      if (p.output != nullptr) second_product<T, R, kWidth, kBackward>(p, schedule.steps, feed, row, hidden);
      feed.end_pass();
    }
  }
  if (p.output != nullptr) DroppedSamples<T, R, kBackward>(p, schedule.kept, counter).move();
}

}  // namespace puma
