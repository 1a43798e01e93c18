// The adapter's two chained products, forward and backward, in one kernel.
//
//   forward:   hidden = relu(tokens @ down);          out = residual + branch + factor * hidden @ up
//   backward:  delta = (hidden > 0) * factor * (grad @ up^T);   grad_tokens = delta @ down^T
//
// Only rows of kept samples are computed, compacted: row i is row i % N of the (i / N)-th kept sample. A warp owns 16
// rows from input to output; the accumulators of the first product are the second one's operand, in registers. Dropped
// samples are copied (forward) or zeroed (backward) by the warps that have no rows left. Warps share nothing but the
// weights, which stay in shared memory if they fit and stream through a ring of buffers otherwise.
#pragma once

#include <type_traits>

#include "prepare.cuh"

namespace puma {

struct AdapterArguments {
  const void* input;     // rows of the first product: tokens (T), or the gradient of the output (R)
  const void* residual;  // forward: (R)
  const void* branch;    // forward: added to the residual (R, or T if branch_is_narrow). Or null
  bool branch_is_narrow;
  void* output;          // forward: out (R); backward: gradient of the tokens (T), null if not wanted
  const void* mask;      // backward: hidden (T), compacted rows of `width` elements
  void* activation;      // forward: hidden (T), compacted rows of `width`; backward: delta (T), rows of kWidth. Or null
  const float* gate;     // (samples,) or null
  const int32_t* kept;
  const int32_t* order;
  const Bytes16* weights;  // packed
  int64_t samples;
  int64_t tokens_per_sample;
  int64_t channels;
  int64_t padded_channels;
  int width;     // r
  float scale;
  bool resident;  // all packed weights fit into shared memory
};

// As many warps as the registers allow without spilling: float operands take twice the registers.
template <typename T, typename R, int kWidth, bool kBackward>
inline constexpr int kAdapterWarps = kWidth > 64 && (sizeof(T) == 4 || (kBackward && sizeof(R) == 4)) ? 8 : 12;
inline constexpr int kTileRows = 16;
inline constexpr int kStages = 4;  // of the ring

// Brings the weights into shared memory, step by step, in the order in which they are used.
template <int kStepBytes, int kThreads>
class WeightStream {
 public:
  // steps: of one matrix; used_steps: per pass, less than those of both where the second product is not wanted.
  PUMA_DEVICE WeightStream(const Bytes16* weights, int steps, int used_steps, bool resident, int64_t passes)
      : weights_(weights), steps_(steps), used_steps_(used_steps), resident_(resident), to_issue_(passes * used_steps) {
    if (resident_) {
      copy(0, 0, steps_);
      dev::copy_async_commit();
      copy(steps_, steps_, used_steps_ - steps_);
      dev::copy_async_commit();
    } else {
      for (int i = 0; i < kStages - 1; ++i) issue();
    }
  }

  // The weights of the next step. Called by all threads of the block alike.
  PUMA_DEVICE const Bytes16* next() {
    int index = use_;
    if (resident_) {
      if (first_pass_ && (index == 0 || index == steps_)) {
        if (index == 0) {
          dev::copy_async_wait<1>();
        } else {
          dev::copy_async_wait<0>();
        }
        dev::sync_block();
      }
      if (++use_ == used_steps_) {
        use_ = 0;
        first_pass_ = false;
      }
    } else {
      dev::copy_async_wait<kStages - 2>();
      dev::sync_block();  // this step has arrived for all, and all have left the buffer that is filled next
      issue();
      if (++use_ == kStages) use_ = 0;
    }
    return buffer(index);
  }

 private:
  static constexpr int kUnits = kStepBytes / 16;

  PUMA_DEVICE static Bytes16* buffer(int index) {
    return reinterpret_cast<Bytes16*>(dev::shared_memory()) + index * kUnits;
  }
  PUMA_DEVICE void copy(int index, int step, int count) {
    const Bytes16* source = weights_ + static_cast<int64_t>(step) * kUnits;
    for (int i = dev::thread(); i < count * kUnits; i += kThreads) dev::copy_async16(buffer(index) + i, source + i);
  }
  PUMA_DEVICE void issue() {
    if (to_issue_ > 0) {
      copy(fill_, step_, 1);
      --to_issue_;
      if (++fill_ == kStages) fill_ = 0;
      if (++step_ == used_steps_) step_ = 0;
    }
    dev::copy_async_commit();  // also when empty: waiting counts groups
  }

  const Bytes16* weights_;
  int steps_;
  int used_steps_;
  bool resident_;
  bool first_pass_ = true;
  int use_ = 0;   // buffer of the next step
  int fill_ = 0;  // buffer that is filled next, with step_
  int step_ = 0;
  int64_t to_issue_;
};

// The compacted row a lane works on, and where its sample lies.
struct RowOfLane {
  bool valid = false;
  int64_t compact = 0;  // row among the kept ones
  int64_t full = 0;     // row among all
  float factor = 0.0f;

  PUMA_DEVICE void locate(const AdapterArguments& p, int64_t row, int64_t kept_rows) {
    valid = row < kept_rows;
    if (!valid) return;
    const int64_t rank = row / p.tokens_per_sample;
    const int64_t sample = p.order[rank];
    compact = row;
    full = sample * p.tokens_per_sample + (row - rank * p.tokens_per_sample);
    factor = p.gate == nullptr ? p.scale : p.gate[sample] * p.scale;
  }
};

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

// kElements<T> elements of the branch, in the type they have.
template <typename T, typename R>
struct BranchUnit {
  Stored<R, T> stored;

  PUMA_DEVICE void load(const AdapterArguments& p, int64_t offset) {
    if (is_narrow(p)) {
      stored.unit[0] = dev::load_global16(static_cast<const T*>(p.branch) + offset);
    } else {
      stored.load(static_cast<const R*>(p.branch) + offset);
    }
  }
  PUMA_DEVICE float element(const AdapterArguments& p, int i) const {
    return is_narrow(p) ? unit_element<T>(stored.unit[0], i) : stored.element(i);
  }

 private:
  PUMA_DEVICE static bool is_narrow(const AdapterArguments& p) { return !same_type<R, T> && p.branch_is_narrow; }
};

// Rows of a dropped sample, which one warp passes through.
struct DroppedRows {
  int64_t offset;    // of their first element
  int64_t elements;

  PUMA_DEVICE DroppedRows(const AdapterArguments& p, int64_t item, int64_t kept) {
    const int64_t items_per_sample = (p.tokens_per_sample + kTileRows - 1) / kTileRows;
    const int64_t sample = p.order[kept + item / items_per_sample];
    const int64_t first_row = item % items_per_sample * kTileRows;
    const int64_t rows = p.tokens_per_sample - first_row < kTileRows ? p.tokens_per_sample - first_row : kTileRows;
    offset = (sample * p.tokens_per_sample + first_row) * p.channels;
    elements = rows * p.channels;
  }
};

// One warp: residual + branch.
template <typename T, typename R>
PUMA_DEVICE void pass_through_with_branch(const AdapterArguments& p, const DroppedRows& rows) {
  for (int64_t i = dev::lane() * kElements<T>; i < rows.elements; i += 32 * kElements<T>) {
    Stored<R, T> sum;
    BranchUnit<T, R> branch;
    sum.load(static_cast<const R*>(p.residual) + rows.offset + i);
    branch.load(p, rows.offset + i);
    float v[kElements<T>];
#pragma unroll
    for (int e = 0; e < kElements<T>; ++e) v[e] = sum.element(e) + branch.element(p, e);
    sum.set(v);
    sum.store(static_cast<R*>(p.output) + rows.offset + i);
  }
}

// One warp: up to 16 rows of a dropped sample, copied from the residual or zeroed.
template <typename Out>
PUMA_DEVICE void pass_through(const AdapterArguments& p, const DroppedRows& rows) {
  const int64_t units = rows.elements / kElements<Out>;
  Out* out = static_cast<Out*>(p.output) + rows.offset;
  const Out* source = static_cast<const Out*>(p.residual) + (p.residual == nullptr ? 0 : rows.offset);

  constexpr int kUnroll = 4;
  for (int64_t base = dev::lane(); base < units; base += 32 * kUnroll) {
    Bytes16 unit[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      unit[i] = Bytes16{{0, 0, 0, 0}};
      if (p.residual != nullptr && base + 32 * i < units) {
        unit[i] = dev::load_global16(source + (base + 32 * i) * kElements<Out>);
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (base + 32 * i < units) dev::store_global16(out + (base + 32 * i) * kElements<Out>, unit[i]);
    }
  }
}

// T: type of tokens, weights and activation; R: type of the residual stream; kWidth: r, padded.
template <typename T, typename R, int kWidth, bool kBackward>
PUMA_DEVICE void adapter(const AdapterArguments& p) {
  using Packed = PackedWeights<T, kWidth>;
  using In = std::conditional_t<kBackward, R, T>;
  using Out = std::conditional_t<kBackward, T, R>;
  constexpr int kTiles = kWidth / 8;
  constexpr int kWidthGroups = kWidth / kGroup<T>;
  constexpr int kTilesGroup = kTilesPerGroup<T>;
  constexpr int kWarps = kAdapterWarps<T, R, kWidth, kBackward>;

  const int lane = dev::lane();
  const int row_in_tile = lane / 4;
  const int column_in_group = lane % 4 * kElements<T>;
  const int64_t slots = dev::blocks() * kWarps;
  // Neighbouring tiles go to different multiprocessors, so that each gets its share of a remainder.
  const int64_t slot = dev::warp() * dev::blocks() + dev::block();

  const int64_t kept = *p.kept;
  const int64_t kept_rows = kept * p.tokens_per_sample;
  const int64_t tiles = (kept_rows + kTileRows - 1) / kTileRows;
  const int64_t passes = tiles > dev::block() ? (tiles - dev::block() + slots - 1) / slots : 0;  // of warp 0: the most
  const int steps = static_cast<int>(p.padded_channels / Packed::kStepColumns);
  const bool second_product = p.output != nullptr;
  const bool rows_aligned = p.width % kElements<T> == 0;

  if (passes > 0) {
    const int used_steps = second_product ? 2 * steps : steps;
    WeightStream<Packed::kStepBytes, 32 * kWarps> stream(p.weights, steps, used_steps, p.resident, passes);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t tile = pass * slots + slot;
      const bool active = tile < tiles;
      RowOfLane row[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) row[h].locate(p, tile * kTileRows + row_in_tile + 8 * h, kept_rows);

      // First product: the input is read straight into fragments, one step ahead.
      Stored<In, T> ahead[2][2];
      const auto load_input = [&](int step) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int64_t column = static_cast<int64_t>(step) * Packed::kStepColumns + q * kGroup<T> + column_in_group;
            ahead[q][h].clear();
            if (row[h].valid && column < p.channels) {
              ahead[q][h].load(static_cast<const In*>(p.input) + row[h].full * p.channels + column);
            }
          }
        }
      };
      float sums[kTiles][4];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[j][i] = 0.0f;
      }
      load_input(0);
      for (int step = 0; step < steps; ++step) {
        Bytes16 operand[2][2];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
#pragma unroll
          for (int h = 0; h < 2; ++h) operand[q][h] = ahead[q][h].as_operand();
        }
        if (step + 1 < steps) load_input(step + 1);
        const Bytes16* weights = stream.next();
        if (active) {
#pragma unroll
          for (int q = 0; q < 2; ++q) {
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
              const Bytes16 b = dev::load_shared(weights + (q * kTiles + j) * 32 + lane);
              mma_group<T>(sums[j], operand[q][0], operand[q][1], b);
            }
          }
        }
      }

      // The activation, or its gradient: rounded to T, saved, and the second product's operand.
      Bytes16 hidden[kWidthGroups][2];
#pragma unroll
      for (int g = 0; g < kWidthGroups; ++g) {
        const int column = g * kGroup<T> + column_in_group;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float v[kElements<T>];
          accumulator_row<T>(sums + g * kTilesGroup, h, v);
          if constexpr (kBackward) {
            Bytes16 saved{{0, 0, 0, 0}};
            if (row[h].valid) {
              const T* mask = static_cast<const T*>(p.mask) + row[h].compact * p.width;
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
            T* activation = static_cast<T*>(p.activation) + row[h].compact * width;
            store_row_unit(activation, column, width, kBackward || rows_aligned, hidden[g][h]);
          }
        }
      }
      if (!second_product) continue;

      // Second product, one group of output columns at a time.
      Stored<Out, T> residual[2][2];
      const auto load_residual = [&](int step) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int64_t column = static_cast<int64_t>(step) * Packed::kStepColumns + q * kGroup<T> + column_in_group;
            if (row[h].valid && column < p.channels) {
              residual[q][h].load(static_cast<const Out*>(p.residual) + row[h].full * p.channels + column);
            } else {
              residual[q][h].clear();
            }
          }
        }
      };
      if constexpr (!kBackward) load_residual(0);
      for (int step = 0; step < steps; ++step) {
        const Bytes16* weights = stream.next();
        if (!active) continue;
        Stored<Out, T> result[2][2];
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          float product[kTilesGroup][4];
#pragma unroll
          for (int j = 0; j < kTilesGroup; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) product[j][i] = 0.0f;
          }
#pragma unroll
          for (int g = 0; g < kWidthGroups; ++g) {
#pragma unroll
            for (int j = 0; j < kTilesGroup; ++j) {
              const int unit = ((q * kWidthGroups + g) * kTilesGroup + j) * 32 + lane;
              mma_group<T>(product[j], hidden[g][0], hidden[g][1], dev::load_shared(weights + unit));
            }
          }
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float v[kElements<T>];
            accumulator_row<T>(product, h, v);
            if constexpr (!kBackward) {
#pragma unroll
              for (int e = 0; e < kElements<T>; ++e) v[e] = residual[q][h].element(e) + row[h].factor * v[e];
              if (p.branch != nullptr) {
                const int64_t column =
                    static_cast<int64_t>(step) * Packed::kStepColumns + q * kGroup<T> + column_in_group;
                if (row[h].valid && column < p.channels) {
                  BranchUnit<T, R> branch;
                  branch.load(p, row[h].full * p.channels + column);
#pragma unroll
                  for (int e = 0; e < kElements<T>; ++e) v[e] += branch.element(p, e);
                }
              }
            }
            result[q][h].set(v);
          }
        }
        if constexpr (!kBackward) {
          if (step + 1 < steps) load_residual(step + 1);
        }
#pragma unroll
        for (int q = 0; q < 2; ++q) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int64_t column = static_cast<int64_t>(step) * Packed::kStepColumns + q * kGroup<T> + column_in_group;
            if (row[h].valid && column < p.channels) {
              result[q][h].store(static_cast<Out*>(p.output) + row[h].full * p.channels + column);
            }
          }
        }
      }
    }
  }

  if (p.output != nullptr) {
    const int64_t items = (p.samples - kept) * ((p.tokens_per_sample + kTileRows - 1) / kTileRows);
    // Continue where the tiles ended: the slots behind the last tile come first.
    const int64_t begin = (slot - tiles % slots + slots) % slots;
    for (int64_t item = begin; item < items; item += slots) {
      const DroppedRows rows(p, item, kept);
      if constexpr (!kBackward) {
        if (p.branch != nullptr) {
          pass_through_with_branch<T, R>(p, rows);
          continue;
        }
      }
      pass_through<Out>(p, rows);
    }
  }
}

}  // namespace puma
