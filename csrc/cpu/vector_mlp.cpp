#include "vector_mlp.h"

#include <algorithm>

#include "gelu.h"
#include "lines.h"
#include "row_products.h"
#include "simd.h"

namespace puma {
namespace {

// Of the hidden layer, what goes through at once: it should stay in the second level of the cache, but the more there is,
// the less often the weights come from memory. Measured.
constexpr int64_t kMiddleBytes = 3 << 19, kFewestGroups = 8, kMostGroups = 16;

// Slopes from kFirstSlope up as whole numbers of 2^-23; 0 stands for NaN.
constexpr float kSlopeUnits = 8388608.0F, kFirstSlope = -0.25F;

// The next panel, fetched while this one is multiplied.
class PanelAhead {
 public:
  PanelAhead(const float* panel, int64_t elements, int64_t calls)
      : next_(reinterpret_cast<const char*>(panel)),
        end_(reinterpret_cast<const char*>(panel + elements)),
        lines_((elements * static_cast<int64_t>(sizeof(float)) / kLineBytes + calls - 1) / calls) {}

  PUMA_INLINE void fetch() {
    for (int64_t line = 0; line < lines_ && next_ < end_; ++line, next_ += kLineBytes) __builtin_prefetch(next_, 0, 2);
  }

 private:
  const char *next_, *end_;
  int64_t lines_;
};

PUMA_INLINE void fetch(const void* memory, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += kLineBytes) {
    __builtin_prefetch(static_cast<const char*>(memory) + byte, 0, 2);
  }
}

// The rows of a block as left-hand sides, group by group; zeros behind the last.
template <int bytes, int I>
PUMA_INLINE void pack_block(float* left, const float* in, int64_t rows, int64_t groups, int64_t width) {
  for (int64_t row = 0; row < groups * I; ++row) {
    pack_row<bytes, I>(left + row / I * I * width, row % I, row < rows ? in + row * width : nullptr, width);
  }
}

// Calls before(group, column) and after(tile, group, column) around the product of each group with each panel.
template <int bytes, int I, int J, class Before, class After>
PUMA_INLINE void multiply_groups(
    const float* left, int64_t groups, const VectorOperand& right, const Before& before, const After& after) {
  using Sums = Tile<float, bytes, I, J>;
  const int64_t depth = right.depth();
  for (int64_t column = 0; column < right.columns(); column += Sums::kColumns) {
    const float* const panel = right.panel(column);
    const bool last = column + Sums::kColumns >= right.columns();
    PanelAhead ahead(panel + Sums::kColumns * depth, last ? 0 : Sums::kColumns * depth, groups * (depth / kBlock));
    for (int64_t group = 0; group < groups; ++group) {
      before(group, column);
      Sums tile, sum;
      const float* const rows = left + group * I * depth;
      multiply(sum, rows, I * kBlock, panel, std::min(kLongestSum, depth), ahead);
      for (int64_t done = kLongestSum; done < depth; done += kLongestSum) {
        const int64_t some = std::min(kLongestSum, depth - done);
        multiply(tile, rows + done * I, I * kBlock, panel + done * Sums::kColumns, some, ahead);
        PUMA_UNROLL for (int i = 0; i < I; ++i) {
          PUMA_UNROLL for (int j = 0; j < J; ++j) sum.sum[i][j] += tile.sum[i][j];
        }
      }
      after(sum, group, column);
    }
  }
}

// Writes tiles as rows of a (rows, right.columns()) matrix, whose first is that of the block.
template <int bytes, int I, int J>
PUMA_INLINE void multiply_into(
    float* out, int64_t rows, const float* bias, const float* left, int64_t groups, const VectorOperand& right) {
  using Sums = Tile<float, bytes, I, J>;
  using V = typename Sums::V;
  const int64_t width = right.columns();
  const auto before = [&](int64_t group, int64_t column) PUMA_LAMBDA_INLINE {
    for (int64_t i = 0; i < std::min<int64_t>(I, rows - group * I); ++i) {
      fetch(out + (group * I + i) * width + column, Sums::kColumns * sizeof(float));
    }
  };
  const auto after = [&](const Sums& tile, int64_t group, int64_t column) PUMA_LAMBDA_INLINE {
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      const int64_t c = column + j * Sums::W;
      if (c >= width) break;
      const V shift = bias == nullptr ? V{} : load<V>(bias + c);
      PUMA_UNROLL for (int i = 0; i < I; ++i) {
        if (group * I + i >= rows) break;
        store(out + (group * I + i) * width + c, tile.sum[i][j] + shift);
      }
    }
  };
  multiply_groups<bytes, I, J>(left, groups, right, before, after);
}

// Of one row of a tile, kSlopeBytes for each: the lower 16 bits of either vector, then the upper 8 of both.
template <int bytes>
struct SlopePair {
  using V = typename Vector<float, bytes>::type;
  using I = typename Vector<int32_t, bytes>::type;
  using U16 = typename Vector<uint16_t, bytes / 2>::type;

  static PUMA_INLINE I units(V slope) {
    const V units = (slope - kFirstSlope) * kSlopeUnits, not_below = units > 0 ? units : V{};
    return __builtin_convertvector(not_below < 2 * kSlopeUnits ? not_below : V{}, I);
  }

  static PUMA_INLINE V slope(I units) {
    const V slope = __builtin_convertvector(units, V) * (1 / kSlopeUnits) + kFirstSlope;
    return units == 0 ? V{} + __builtin_nanf("") : slope;
  }

  static PUMA_INLINE void save(uint8_t* out, V first, V second) {
    const I a = units(first), b = units(second);
    U16* const words = reinterpret_cast<U16*>(out);
    words[0] = __builtin_convertvector(a, U16);
    words[1] = __builtin_convertvector(b, U16);
    words[2] = __builtin_convertvector(a >> 16 | b >> 16 << 8, U16);
  }

  static PUMA_INLINE void read(const uint8_t* in, V& first, V& second) {
    const U16* const words = reinterpret_cast<const U16*>(in);
    const I high = __builtin_convertvector(words[2], I);
    first = slope(__builtin_convertvector(words[0], I) | (high & 255) << 16);
    second = slope(__builtin_convertvector(words[1], I) | high >> 8 << 16);
  }
};

// Where a tile of the hidden layer lies: its slopes, and in the second product's left-hand side the columns of its two
// vectors, kBlock elements from row to row. The second is null where the layer ends before it, slopes that are not kept are.
template <int bytes, int I, class Byte>
struct HiddenTile {
  static constexpr int W = bytes / static_cast<int>(sizeof(float));
  static constexpr int64_t kRowBytes = 2 * W * kSlopeBytes, kBytes = I * kRowBytes;

  Byte* slopes;
  float *first, *second;

  PUMA_INLINE HiddenTile(const VectorMlp& mlp, Byte* all_slopes, int64_t group, int64_t column) {
    const int64_t hidden = mlp.second.depth(), next = column + W;
    float* const middle = mlp.middle.get() + group * I * hidden;
    first = middle + column / kBlock * I * kBlock + column % kBlock;
    second = next < hidden ? middle + next / kBlock * I * kBlock + next % kBlock : nullptr;
    const int64_t before = group * rounded_up(hidden, 2 * W) * I * kSlopeBytes + column / (2 * W) * kBytes;
    slopes = all_slopes == nullptr ? nullptr : all_slopes + before;
  }
};

template <int bytes, int I, int J>
PUMA_INLINE void forward_block(
    const VectorMlp& mlp, const float* input, const float* first_bias, const float* second_bias, float* output,
    uint8_t* slopes, int64_t rows, int64_t groups) {
  static_assert(J == 2, "slopes come in pairs");
  using Sums = Tile<float, bytes, I, J>;
  using V = typename Sums::V;
  using Place = HiddenTile<bytes, I, uint8_t>;
  pack_block<bytes, I>(mlp.left.get(), input, rows, groups, mlp.first.depth());
  const auto before = [&](int64_t group, int64_t column) PUMA_LAMBDA_INLINE {
    if (slopes != nullptr) fetch(Place(mlp, slopes, group, column).slopes, Place::kBytes);
  };
  const auto after = [&](const Sums& tile, int64_t group, int64_t column) PUMA_LAMBDA_INLINE {
    const Place place(mlp, slopes, group, column);
    const bool both = place.second != nullptr;
    const V first_shift = first_bias == nullptr ? V{} : load<V>(first_bias + column);
    const V second_shift = first_bias == nullptr || !both ? V{} : load<V>(first_bias + column + Sums::W);
    for (int i = 0; i < I; ++i) {
      alignas(sizeof(V)) V value, first_slope, second_slope;  // behind gelu's references they are taken to lie so
      gelu<V>(tile.sum[i][0] + first_shift, value, first_slope);
      store(place.first + i * kBlock, value);
      gelu<V>(tile.sum[i][1] + second_shift, value, second_slope);
      if (both) store(place.second + i * kBlock, value);
      if (slopes != nullptr) SlopePair<bytes>::save(place.slopes + i * Place::kRowBytes, first_slope, second_slope);
    }
  };
  multiply_groups<bytes, I, J>(mlp.left.get(), groups, mlp.first, before, after);
  multiply_into<bytes, I, J>(output, rows, second_bias, mlp.middle.get(), groups, mlp.second);
}

template <int bytes, int I, int J>
PUMA_INLINE void backward_block(
    const VectorMlp& mlp, const float* grad_output, const uint8_t* slopes, float* grad_input, int64_t rows,
    int64_t groups) {
  using Sums = Tile<float, bytes, I, J>;
  using V = typename Sums::V;
  using Place = HiddenTile<bytes, I, const uint8_t>;
  pack_block<bytes, I>(mlp.left.get(), grad_output, rows, groups, mlp.first.depth());
  const auto before = [&](int64_t group, int64_t column) PUMA_LAMBDA_INLINE {
    fetch(Place(mlp, slopes, group, column).slopes, Place::kBytes);
  };
  const auto after = [&](const Sums& tile, int64_t group, int64_t column) PUMA_LAMBDA_INLINE {
    const Place place(mlp, slopes, group, column);
    PUMA_UNROLL for (int i = 0; i < I; ++i) {
      V first_slope, second_slope;
      SlopePair<bytes>::read(place.slopes + i * Place::kRowBytes, first_slope, second_slope);
      store(place.first + i * kBlock, tile.sum[i][0] * first_slope);
      if (place.second != nullptr) store(place.second + i * kBlock, tile.sum[i][1] * second_slope);
    }
  };
  multiply_groups<bytes, I, J>(mlp.left.get(), groups, mlp.first, before, after);
  multiply_into<bytes, I, J>(grad_input, rows, nullptr, mlp.middle.get(), groups, mlp.second);
}

// The blocks for one instruction set.
struct Kernels {
  void (*forward)(
      const VectorMlp& mlp, const float* input, const float* first_bias, const float* second_bias, float* output,
      uint8_t* slopes, int64_t rows, int64_t groups);
  void (*backward)(
      const VectorMlp& mlp, const float* grad_output, const uint8_t* slopes, float* grad_input, int64_t rows,
      int64_t groups);
};

#define PUMA_KERNELS(NAME, BYTES, ...)                                                                            \
  static_assert(kTileRows<BYTES> <= kMoreSlopeRows + 1 && kSlopeColumns % (BYTES / 4 * kTileVectors) == 0);       \
  __VA_ARGS__ void forward_##NAME(                                                                                \
      const VectorMlp& mlp, const float* input, const float* first_bias, const float* second_bias, float* output, \
      uint8_t* slopes, int64_t rows, int64_t groups) {                                                            \
    forward_block<BYTES, kTileRows<BYTES>, kTileVectors>(                                                         \
        mlp, input, first_bias, second_bias, output, slopes, rows, groups);                                       \
  }                                                                                                               \
  __VA_ARGS__ void backward_##NAME(                                                                               \
      const VectorMlp& mlp, const float* grad_output, const uint8_t* slopes, float* grad_input, int64_t rows,     \
      int64_t groups) {                                                                                           \
    backward_block<BYTES, kTileRows<BYTES>, kTileVectors>(mlp, grad_output, slopes, grad_input, rows, groups);    \
  }                                                                                                               \
  constexpr Kernels NAME{forward_##NAME, backward_##NAME};

// kernels(): only where there are vectors.
PUMA_DEFINE_KERNELS(PUMA_KERNELS)

// Calls body(first group, groups) for blocks of at most `most` groups, as even as can be.
template <class F>
void for_each_block(int64_t first, int64_t end, int64_t most, const F& body) {
  const int64_t blocks = (end - first + most - 1) / most;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t here = first + (end - first) * block / blocks, next = first + (end - first) * (block + 1) / blocks;
    body(here, next - here);
  }
}

int64_t most_groups(int64_t hidden) {
  const int64_t group_bytes = tile_rows() * hidden * static_cast<int64_t>(sizeof(float));
  return std::clamp(kMiddleBytes / group_bytes, kFewestGroups, kMostGroups);
}

}  // namespace

int64_t mlp_width_multiple() { return tile_rows() > 0 ? kBlock : 0; }

int64_t slope_bytes(int64_t rows, int64_t hidden) {
  return rounded_up(rows, tile_rows()) * rounded_up(hidden, tile_columns()) * kSlopeBytes;
}

int64_t VectorMlp::groups(int64_t rows) { return (rows + tile_rows() - 1) / tile_rows(); }

VectorMlp::VectorMlp(const VectorOperand& first, const VectorOperand& second, int64_t rows)
    : first(first), second(second), rows(rows), most(most_groups(second.depth())),
      left(lines<float>(most * tile_rows() * first.depth())), middle(lines<float>(most * tile_rows() * second.depth())) {}

void VectorMlp::forward(
    const float* input, const float* first_bias, const float* second_bias, float* output, uint8_t* slopes,
    int64_t first_group, int64_t end_group) {
  for_each_block(first_group, end_group, most, [&](int64_t group, int64_t groups) {
    const int64_t row = group * tile_rows();
    uint8_t* const here = slopes == nullptr ? nullptr : slopes + slope_bytes(row, second.depth());
    kernels().forward(
        *this, input + row * first.depth(), first_bias, second_bias, output + row * second.columns(), here,
        std::min(groups * tile_rows(), rows - row), groups);
  });
}

void VectorMlp::backward(
    const float* grad_output, const uint8_t* slopes, float* grad_input, int64_t first_group, int64_t end_group) {
  for_each_block(first_group, end_group, most, [&](int64_t group, int64_t groups) {
    const int64_t row = group * tile_rows();
    kernels().backward(
        *this, grad_output + row * first.depth(), slopes + slope_bytes(row, second.depth()),
        grad_input + row * second.columns(), std::min(groups * tile_rows(), rows - row), groups);
  });
}

}  // namespace puma
