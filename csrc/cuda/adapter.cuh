// The adapter's two chained products, forward and backward, in one kernel.
//
//   forward:   hidden = relu(tokens @ down);          out = residual + branch + factor * hidden @ up
//   backward:  delta = (hidden > 0) * factor * (grad @ up^T);   grad_tokens = delta @ down^T
//
// Only rows of kept samples are computed, compacted: row i is row i % N of the (i / N)-th kept sample. A warp owns 16
// rows from input to output (four together 64, where they multiply together); the accumulators of the first product are
// the second one's operand, in registers. Activations are read straight into registers, some steps ahead. Warps share
// nothing but the weights (weight_stream.cuh). Dropped samples are copied (forward) or zeroed (backward) by the warps
// that have no rows left, meanwhile (dropped.cuh).
#pragma once

#include "dropped.cuh"
#include "read_ahead.cuh"
#include "weight_stream.cuh"

namespace puma {

// As many warps as the registers allow without spilling: float operands take twice the registers.
template <typename T, typename R, int kWidth, Branch kBranch>
inline constexpr int kAdapterWarps =
    sizeof(T) == 4 || (kWidth > 64 && sizeof(R) == 4 && kBranch == Branch::kWide) ? 8 : 12;

// A unit of a row of `width` elements from column on; rows need not be aligned, and may have been written by the kernel
// in front.
template <typename T>
PUMA_DEVICE Bytes16 load_row_unit(const T* row, int column, int width, bool aligned) {
  if (aligned) return column < width ? dev::load_written16(row + column) : Bytes16{{0, 0, 0, 0}};
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

// Steps that a lane reads ahead of use: two of a half type where the registers allow, as many bytes of float.
template <typename T, typename S>
inline constexpr int kAhead = uses_warpgroups<T> && sizeof(S) == 2 ? 2 : 1;

// What a lane reads of its two rows, step by step: units (group q, row h). S: type in memory; kWritten: the kernel in
// front may have written it.
template <typename S, typename T, int kSteps, bool kWritten = false>
struct RowReader {
  Stored<S, T> ahead[kSteps][2][2];

  // column: that of the step. Columns behind the last one are zeros: their weights are, but not what lies there.
  PUMA_DEVICE void read(const void* rows, const LanePlace<T>& place, int slot, int column) {
#pragma unroll
    for (int q = 0; q < 2; ++q) read_group(rows, place, slot, column, q);
  }
  PUMA_DEVICE void read_group(const void* rows, const LanePlace<T>& place, int slot, int column, int q) {
    const bool whole = column + kGroup<T> < place.columns_left;  // group 1 is there, and so is group 0
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const S* row = static_cast<const S*>(rows) + (place.offset[h] + column);
      Stored<S, T>& to = ahead[slot][q][h];
      if (!whole) to.clear();
      if (whole || column + q * kGroup<T> < place.columns_left) to.template load<kWritten>(row + q * kGroup<T>);
    }
  }
};

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
template <typename T, typename R, int kWidth, bool kBackward>
PUMA_DEVICE void first_product(const AdapterArguments& p, WeightStream<T, kWidth>& stream, const LanePlace<T>& place,
                               float (&sums)[kWidth / 8][4]) {
  using In = std::conditional_t<kBackward, R, T>;
  constexpr int kTiles = kWidth / 8;
  constexpr int kStepColumns = PackedWeights<T, kWidth>::kStepColumns;
  constexpr int kSteps = kAhead<T, In>;
  const int steps = stream.steps(p);
  RowReader<In, T, kSteps, kBackward> input;  // the forward's kernel in front writes no input of the operator
#pragma unroll
  for (int a = 0; a < kSteps; ++a) {
    if (a < steps) input.read(p.input, place, a, a * kStepColumns);
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] = 0.0f;
  }
#pragma unroll 1
  for (int first = 0; first < steps; first += kSteps) {
#pragma unroll
    for (int a = 0; a < kSteps; ++a) {
      const int step = first + a;
      if (step >= steps) break;
      Bytes16 operand[2][2];
#pragma unroll
      for (int q = 0; q < 2; ++q) {
#pragma unroll
        for (int h = 0; h < 2; ++h) operand[q][h] = input.ahead[a][q][h].as_operand();
      }
      if (step + kSteps < steps) input.read(p.input, place, a, (step + kSteps) * kStepColumns);
      if constexpr (kBackward && !same_type<In, T>) {
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
        dev::warpgroup_end(sums);
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

// The saved activation in a group of columns; zeros behind the last row.
template <typename T>
PUMA_DEVICE void read_mask(const AdapterArguments& p, const LanePlace<T>& place, int group, bool rows_aligned,
                           Bytes16 (&mask)[2]) {
  const int column = group + dev::lane() % 4 * kElements<T>;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    mask[h] = Bytes16{{0, 0, 0, 0}};
    if (!place.valid(h)) continue;
    const T* row = static_cast<const T*>(p.mask) + static_cast<int64_t>(place.compact() + 8 * h) * p.width;
    mask[h] = load_row_unit(row, column, p.width, rows_aligned);
  }
}

// The activation, or its gradient: rounded to T and saved.
template <typename T, int kWidth, bool kBackward>
PUMA_DEVICE void activate(const AdapterArguments& p, const LanePlace<T>& place, const float (&sums)[kWidth / 8][4],
                          HiddenUnits<T, kWidth>& hidden) {
  constexpr int kGroups = kWidth / kGroup<T>;
  constexpr int kAtOnce = uses_warpgroups<T> ? kGroups : 1;  // groups of the mask that are read together
  const bool rows_aligned = p.width % kElements<T> == 0;
  Bytes16 mask[kAtOnce][2];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    if (kBackward && g % kAtOnce == 0) {
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a) read_mask<T>(p, place, (g + a) * kGroup<T>, rows_aligned, mask[a]);
    }
    const int column = g * kGroup<T> + dev::lane() % 4 * kElements<T>;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float v[kElements<T>];
      accumulator_row<T>(sums + g * kTilesPerGroup<T>, h, v);
      if constexpr (kBackward) {
#pragma unroll
        for (int e = 0; e < kElements<T>; ++e) {
          v[e] = unit_element<T>(mask[g % kAtOnce][h], e) > 0.0f ? v[e] * place.factor[h] : 0.0f;
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

// What is added to the second product: the residual and the branch, in the forward.
template <typename T, typename R, Branch kBranch>
class Addends {
  using B = BranchType<T, R, kBranch>;
  static constexpr bool kHasBranch = kBranch != Branch::kNone;

 public:
  static constexpr int kSteps = kHasBranch ? 1 : kAhead<T, R>;  // read ahead, each in a slot
  // float's branch: registers do not last for both.
  static constexpr bool kBranchLate = kHasBranch && sizeof(T) == 4;

  PUMA_DEVICE void read_group(const AdapterArguments& p, const LanePlace<T>& place, int slot, int column, int q) {
    residual_.read_group(p.residual, place, slot, column, q);
    if constexpr (kHasBranch && !kBranchLate) branch_.read_group(p.branch, place, slot, column, q);
  }
  PUMA_DEVICE void read_late(const AdapterArguments& p, const LanePlace<T>& place, int slot, int column, int q) {
    if constexpr (kBranchLate) branch_.read_group(p.branch, place, slot, column, q);
  }
  // v = residual + branch + factor * v
  PUMA_DEVICE void join(int slot, int q, int h, float factor, float (&v)[kElements<T>]) const {
#pragma unroll
    for (int e = 0; e < kElements<T>; ++e) {
      v[e] = residual_.ahead[slot][q][h].element(e) + factor * v[e];
      if constexpr (kHasBranch) v[e] += branch_.ahead[slot][q][h].element(e);
    }
  }

 private:
  RowReader<R, T, kSteps> residual_;
  RowReader<B, T, kSteps> branch_;
};

template <typename T>
struct NoAddends {
  static constexpr int kSteps = 1;
  PUMA_DEVICE void read_group(const AdapterArguments&, const LanePlace<T>&, int, int, int) {}
  PUMA_DEVICE void read_late(const AdapterArguments&, const LanePlace<T>&, int, int, int) {}
  PUMA_DEVICE void join(int, int, int, float, float (&)[kElements<T>]) const {}
};

// output = hidden @ second weights, joined with the residual and the branch in the forward; a step of columns at a
// time.
template <typename T, typename R, int kWidth, bool kBackward, Branch kBranch>
PUMA_DEVICE void second_product(const AdapterArguments& p, WeightStream<T, kWidth>& stream,
                                const LanePlace<T>& place, const HiddenUnits<T, kWidth>& hidden) {
  using Out = std::conditional_t<kBackward, T, R>;
  using Packed = PackedWeights<T, kWidth>;
  using Added = std::conditional_t<kBackward, NoAddends<T>, Addends<T, R, kBranch>>;
  constexpr int kGroupTiles = kTilesPerGroup<T>;
  // Both groups of columns where the registers last.
  constexpr int kGroupsAtOnce = uses_warpgroups<T> && sizeof(R) == sizeof(T) && Added::kSteps == 1 ? 2 : 1;
  const int steps = stream.steps(p);
  Added added;
  // Each group of columns is read some steps ahead; float's products take long enough for its own.
  constexpr bool kReadsAhead = sizeof(T) < 4;
  if (kReadsAhead) {
#pragma unroll
    for (int slot = 0; slot < Added::kSteps; ++slot) {
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        // There is a step 0. Asked whether there is, the compiler spills registers.
        if (slot == 0 || slot < steps) added.read_group(p, place, slot, slot * Packed::kStepColumns, q);
      }
    }
  }
#pragma unroll 1
  for (int first = 0; first < steps; first += Added::kSteps) {
#pragma unroll
    for (int slot = 0; slot < Added::kSteps; ++slot) {
      const int step = first + slot;
      if (step >= steps) break;
      const Bytes16* weights = stream.next(p);
#pragma unroll
      for (int q0 = 0; q0 < 2; q0 += kGroupsAtOnce) {
        if (!kReadsAhead) added.read_group(p, place, slot, step * Packed::kStepColumns, q0);
        float product[kGroupsAtOnce * kGroupTiles][4];
        multiply_hidden<T, kWidth>(hidden, weights + second_weights<T, kWidth>(q0), product);
#pragma unroll
        for (int q = q0; q < q0 + kGroupsAtOnce; ++q) {
          const int column = step * Packed::kStepColumns + q * kGroup<T>;
          added.read_late(p, place, slot, step * Packed::kStepColumns, q);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float v[kElements<T>];
            accumulator_row<T>(product + (q - q0) * kGroupTiles, h, v);
            added.join(slot, q, h, place.factor[h], v);
            Stored<Out, T> result;
            result.set(v);
            if (place.valid(h) && column < place.columns_left) {
              result.store(static_cast<Out*>(p.output) + (place.offset[h] + column));
            }
          }
          const int next = step + Added::kSteps;
          if (kReadsAhead && next < steps) added.read_group(p, place, slot, next * Packed::kStepColumns, q);
        }
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
      float sums[kWidth / 8][4];
      first_product<T, R, kWidth, kBackward>(p, stream, place, sums);
      HiddenUnits<T, kWidth> hidden;
      activate<T, kWidth, kBackward>(p, place, sums, hidden);
      if (p.output != nullptr) second_product<T, R, kWidth, kBackward, kBranch>(p, stream, place, hidden);
      stream.end_pass(p, place.pass);
    }
  }
  if (p.output != nullptr) DroppedSamples<T, R, kBackward, kBranch>(p).move();
}

}  // namespace puma
