// GELU MLP with frozen weights on vector registers (AVX2, AVX-512), float32: a block of rows goes through both products and
// all that surrounds them, so that the hidden layer is never in memory as a whole. For the backward only GELU's slopes are
// left.
#pragma once

#include <cstdint>

#include "lines.h"
#include "vector_operand.h"

namespace puma {

// Of the widths of input, hidden layer and output; 0 where there are no vectors.
int64_t mlp_width_multiple();

// Slopes lie in [-0.13, 1.13]: 24 bits of a fixed-point number are as exact as float32 is there. Rows and columns are filled
// up to whole tiles, and lie as these come, so that both passes read and write them in order.
constexpr int64_t kSlopeBytes = 3;
int64_t slope_bytes(int64_t rows, int64_t hidden);

// A tensor of slopes has so many more rows, and columns up to that multiple: enough for every instruction set's tiles, as
// compiled code that torch keeps on disk may run on another machine.
constexpr int64_t kMoreSlopeRows = 13, kSlopeColumns = 32;

// The state of one thread. Rows come in groups, as many as a tile has; open, for the loops of each instruction set are plain
// functions.
struct VectorMlp {
  static int64_t groups(int64_t rows);

  // first: (in, hidden) and second: (hidden, out); in the backward second's and first's transposes.
  VectorMlp(const VectorOperand& first, const VectorOperand& second, int64_t rows);

  // A range of groups. Biases may be null; so may slopes, if no backward follows.
  void forward(
      const float* input, const float* first_bias, const float* second_bias, float* output, uint8_t* slopes,
      int64_t first_group, int64_t end_group);
  void backward(
      const float* grad_output, const uint8_t* slopes, float* grad_input, int64_t first_group, int64_t end_group);

  const VectorOperand &first, &second;
  int64_t rows, most;  // of the whole input, groups that go through together
  Lines<float> left, middle;
};

}  // namespace puma
