// The stochastic adapter on vector registers (AVX2, AVX-512): a few rows at a time go through both products and all that
// surrounds them. Their sums stay in registers until they are added to the residual, so nothing but the tensors themselves
// goes through memory.
//
// R is the residual's type and T the tokens'. Half types are widened to float32 for the products.
#pragma once

#include "lines.h"
#include "step.h"
#include "vector.h"
#include "vector_operand.h"

namespace puma {

bool vectors_serve(int64_t width, int64_t rank);

// The state of one thread; open, for the loops of each instruction set are plain functions.
// wide or narrow is the branch, in R or T; both are null if there is none, and hidden is if it is not to be saved.
template <class R, class T>
struct VectorForward {
  using Operand = VectorOperand;
  static int64_t rows();

  VectorForward(
      const Operand& down, const Operand& up, const T* tokens, const R* residual, const R* wide, const T* narrow,
      R* out, T* hidden);

  // `next` is the step to come, or null: its rows are fetched meanwhile.
  void step(const Step& rows, const Step* next);

  const Operand &down, &up;
  const T* tokens;
  const R *residual, *wide;
  const T* narrow;
  R* out;
  T* hidden;
  int64_t width, rank;
  Lines<float> token_tile, hidden_tile;
};

// R is the gradient's type. grad_tokens is null if it is not needed.
template <class R, class T>
struct VectorBackward {
  using Operand = VectorOperand;
  static int64_t rows();
  // The sums lie as strips of this many columns, see SumLayout.
  static int64_t strip(int64_t width);

  // The transposes of the weights; sums of r rows and C columns, grown by what the steps add: the transpose of down's
  // gradient, and up's; or null.
  VectorBackward(
      const Operand& down, const Operand& up, const R* grad, const T* tokens, const T* hidden, T* grad_tokens,
      float* down_sum, float* up_sum);

  void step(const Step& rows, const Step* next);
  // After the last step: the rest of the weights' gradients.
  void finish();

  const Operand &down, &up;
  const R* grad;
  const T *tokens, *hidden;
  T* grad_tokens;
  float *down_sum, *up_sum;
  int64_t width, rank;
  Lines<float> grad_tile;
  // Rows of many steps, for the products that sum over rows: the fewer of these, the less often their sums are moved.
  Lines<float> delta_panel, hidden_panel, wide_strip;
  Lines<int64_t> collected_rows;
  int64_t collected = 0;
};

}  // namespace puma
