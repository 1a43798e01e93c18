// The adapter's two chained products, forward and backward, in one kernel.
//
//   forward:   hidden = relu(tokens @ down);          out = residual + branch + factor * hidden @ up
//   backward:  delta = (hidden > 0) * factor * (grad @ up^T);   grad_tokens = delta @ down^T
//
// Only rows of kept samples are computed, compacted: row i is row i % N of the (i / N)-th kept sample. A warp owns 16
// rows from input to output (four together 64, where they multiply together); the accumulators of the first product are
// the second one's operand, in registers. What a lane needs of its rows it reads itself, some steps ahead. Warps share
// nothing but the weights (weight_stream.cuh). Dropped samples are copied (forward) or zeroed (backward) by the warps
// that have no rows left, meanwhile (dropped.cuh).
#pragma once

#include "dropped.cuh"
#include "read_ahead.cuh"
#include "register_rows.cuh"
#include "staged_rows.cuh"
#include "weight_stream.cuh"

namespace puma {

// As many warps as the registers allow without spilling: float operands take twice the registers.
template <typename T, typename R, int kWidth, Branch kBranch>
inline constexpr int kAdapterWarps =
    sizeof(T) == 4 || (kWidth > 64 && sizeof(R) == 4 && kBranch == Branch::kWide) ? 8 : 12;

template <typename T, typename R, int kWidth, bool kBackward, Branch kBranch>
using Rows = std::conditional_t<stages_rows<T, R>, StagedRows<T, kWidth, kBackward, kBranch>,
                                RegisterRows<T, R, kWidth, kBackward, kBranch>>;

// The activation of one tile, or its gradient: the second product's operand.
template <typename T, int kWidth>
using HiddenUnits = Bytes16[kWidth / kGroup<T>][2];

template <typename T>
PUMA_DEVICE void save_operand(const AdapterArguments& p, const LanePlace<T>& place, int column,
                              const Bytes16 (&operand)[2][2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!place.valid(h)) continue;
    const int64_t row = place.compact() + 8 * h;
    T* saved = static_cast<T*>(p.narrow_input) + row * p.channels + (p.channels - place.columns_left) + column;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      if (column + q * kGroup<T> < place.columns_left) dev::store_global16(saved + q * kGroup<T>, operand[q][h]);
    }
  }
}

// sums (16 x kWidth) = input @ first weights. In the backward on a wider R, the input is also saved as T.
template <typename T, typename R, int kWidth, bool kBackward, typename RowsType>
PUMA_DEVICE void first_product(const AdapterArguments& p, WeightStream<T, kWidth>& stream, const LanePlace<T>& place,
                               RowsType& rows, float (&sums)[kWidth / 8][4]) {
  constexpr int kTiles = kWidth / 8;
  constexpr int kStepColumns = PackedWeights<T, kWidth>::kStepColumns;
  constexpr int kSlots = RowsType::kInputSlots;
  const int steps = stream.steps(p);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] = 0.0f;
  }
#pragma unroll 1
  for (int first = 0; first < steps; first += kSlots) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int step = first + slot;
      if (kSlots > 1 && step >= steps) break;
      Bytes16 operand[2][2];
      rows.input(p, place, step, slot, operand);
      if constexpr (kBackward && !same_type<R, T>) {
        if (p.narrow_input != nullptr) save_operand<T>(p, place, step * kStepColumns, operand);
      }
      const Bytes16* weights = stream.next(p);
      if constexpr (uses_warpgroups<T>) {
        dev::warpgroup_begin(sums);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          constexpr int kBytes = 2 * 8 * kTiles * 16;  // of 16 rows of the weights
          const auto a = fragment_half(operand[i / 2], i % 2);
          dev::warpgroup_product(T{}, sums, a.word, weights, i * kBytes, kTiles, true);
        }
        dev::warpgroup_commit();
        rows.input_used(p, place);
        dev::warpgroup_wait(sums);
      } else {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          if (sizeof(T) == 4 && j % 4 == 0) dev::sync_warp();  // else weights are read too far ahead
          in_short_run<T>(sums[j], [&](float (&d)[4]) {
#pragma unroll
            for (int q = 0; q < 2; ++q) {
              const Bytes16 b = dev::load_shared(weights + (q * kTiles + j) * 32 + dev::lane());
              mma_group<T>(d, operand[q][0], operand[q][1], b);
            }
          });
        }
      }
    }
  }
}

// The activation, or its gradient: rounded to T and saved.
template <typename T, int kWidth, bool kBackward, typename RowsType>
PUMA_DEVICE void activate(const AdapterArguments& p, const LanePlace<T>& place, RowsType& rows,
                          const float (&sums)[kWidth / 8][4], HiddenUnits<T, kWidth>& hidden) {
  const bool rows_aligned = p.width % kElements<T> == 0;
#pragma unroll
  for (int g = 0; g < kWidth / kGroup<T>; ++g) {
    Bytes16 mask[2];
    if constexpr (kBackward) rows.mask(p, place, g, rows_aligned, mask);
    const int column = g * kGroup<T> + dev::lane() % 4 * kElements<T>;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float v[kElements<T>];
      accumulator_row<T>(sums + g * kTilesPerGroup<T>, h, v);
      if constexpr (kBackward) {
#pragma unroll
        for (int e = 0; e < kElements<T>; ++e) {
          v[e] = unit_element<T>(mask[h], e) > 0.0f ? v[e] * place.factor[h] : 0.0f;
        }
      } else {
#pragma unroll
        for (int e = 0; e < kElements<T>; ++e) v[e] = v[e] < 0.0f ? 0.0f : v[e];  // NaN stays
      }
      hidden[g][h] = make_unit<T>(v);
      if (p.activation != nullptr && place.valid(h)) {
        const int width = kBackward ? kWidth : p.width;
        T* activation = static_cast<T*>(p.activation) + static_cast<int64_t>(place.compact() + 8 * h) * width;
        store_row_unit(activation, column, width, kBackward || rows_aligned, hidden[g][h]);
      }
    }
  }
}

// Where the second matrix's weights of group q begin in a step.
template <typename T, int kWidth>
PUMA_DEVICE constexpr int second_weights(int q) {
  return q * (uses_warpgroups<T> ? kTilesPerGroup<T> * 8 : PackedWeights<T, kWidth>::kUnitsPerStep / 2);
}

// product (16 x kTiles * 8) = hidden @ weights, some of the step's tiles.
template <typename T, int kWidth, int kTiles>
PUMA_DEVICE void multiply_hidden(const HiddenUnits<T, kWidth>& hidden, const Bytes16* weights,
                                 float (&product)[kTiles][4]) {
  constexpr int kWidthGroups = kWidth / kGroup<T>;
  if constexpr (uses_warpgroups<T>) {
    dev::warpgroup_begin();
#pragma unroll
    for (int i = 0; i < 2 * kWidthGroups; ++i) {
      constexpr int kAllTiles = 2 * kTilesPerGroup<T>;
      constexpr int kBytes = 2 * 8 * kAllTiles * 16;
      dev::warpgroup_product(T{}, product, fragment_half(hidden[i / 2], i % 2).word, weights, i * kBytes, kAllTiles,
                             i > 0);
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
      dev::sync_warp();  // as in the first product
      const Bytes16 upper = split_here<T>(hidden[g][0]), lower = split_here<T>(hidden[g][1]);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const Bytes16 b = dev::load_shared(weights + (g * kTiles + j) * 32 + dev::lane());
        in_short_run<T>(product[j], [&](float (&d)[4]) { mma_group<T>(d, upper, lower, b); });
      }
    }
  }
}

// output = hidden @ second weights, joined with the residual and the branch in the forward; a step of columns at a
// time.
template <typename T, typename R, int kWidth, bool kBackward, typename RowsType>
PUMA_DEVICE void second_product(const AdapterArguments& p, WeightStream<T, kWidth>& stream, const LanePlace<T>& place,
                                RowsType& rows, const HiddenUnits<T, kWidth>& hidden) {
  using Out = std::conditional_t<kBackward, T, R>;
  constexpr int kStepColumns = PackedWeights<T, kWidth>::kStepColumns;
  constexpr int kGroupTiles = kTilesPerGroup<T>;
  constexpr int kGroupsAtOnce = stages_rows<T, R> ? 2 : 1;  // as the registers last
  const int steps = stream.steps(p);
  if constexpr (!kBackward) rows.begin_adding(p, place);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Bytes16* weights = stream.next(p);
#pragma unroll
    for (int q0 = 0; q0 < 2; q0 += kGroupsAtOnce) {
      if constexpr (!kBackward) rows.before_product(p, place, step, q0);
      float product[kGroupsAtOnce * kGroupTiles][4];
      multiply_hidden<T, kWidth>(hidden, weights + second_weights<T, kWidth>(q0), product);
#pragma unroll
      for (int q = q0; q < q0 + kGroupsAtOnce; ++q) {
        const int column = step * kStepColumns + q * kGroup<T>;
        if constexpr (!kBackward) rows.after_product(p, place, step, q);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float v[kElements<T>];
          accumulator_row<T>(product + (q - q0) * kGroupTiles, h, v);
          if constexpr (!kBackward) rows.add(q, h, place.factor[h], v);
          Stored<Out, T> result;
          result.set(v);
          if (place.valid(h) && column < place.columns_left) {
            result.store(static_cast<Out*>(p.output) + (place.offset[h] + column));
          }
        }
        if constexpr (!kBackward) rows.added(p, place, step, q);
      }
    }
  }
}

// T: type of tokens, weights and activation; R: type of the residual stream; kWidth: r, padded.
template <typename T, typename R, int kWidth, bool kBackward, Branch kBranch>
PUMA_DEVICE void adapter(const AdapterArguments& p) {
  using Stream = WeightStream<T, kWidth>;
  using Plan = typename Stream::Plan;
  Stream::set_up(p);
  prefetch_kept_input<std::conditional_t<kBackward, R, T>>(p);
  dev::sync_block();
  dev::wait_for_previous_kernel();
  dev::let_next_kernel_begin();  // not before: then at most the kernel in front of it is unfinished

  LanePlace<T> place(p);
  if (Plan(p).passes() > 0) {
    Stream stream(p, Plan(p));
    for (; place.pass < Plan(p).passes(); ++place.pass) {
      if (place.pass > 0) place.find_rows(p);
      place.rows_left = Plan(p).kept_rows - place.compact();
      if constexpr (kBackward) prefetch_mask<T>(p, place);
      Rows<T, R, kWidth, kBackward, kBranch> rows(p, place);
      float sums[kWidth / 8][4];
      first_product<T, R, kWidth, kBackward>(p, stream, place, rows, sums);
      HiddenUnits<T, kWidth> hidden;
      activate<T, kWidth, kBackward>(p, place, rows, sums, hidden);
      if (p.output != nullptr) second_product<T, R, kWidth, kBackward>(p, stream, place, rows, hidden);
      stream.end_pass(p, place.pass);
    }
  }
  if (p.output != nullptr) DroppedSamples<T, R, kBackward, kBranch>(p).move();
}

}  // namespace puma
