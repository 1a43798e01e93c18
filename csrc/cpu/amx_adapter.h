// The stochastic adapter in bfloat16 on the matrix unit of Intel's processors (AMX): 32 rows at a time go through both
// products and all that surrounds them, without leaving the nearest caches in between.
#pragma once

#include "lines.h"
#include "simd.h"
#include "step.h"
#include "vector.h"

namespace puma {

constexpr int64_t kAmxRows = 32;  // of one step; C and r must be multiples of it, too
static_assert(kAmxRows <= kMostStepRows);

bool amx_serves(int64_t width, int64_t rank);

// The right-hand side of a product, (depth, columns), as the matrix unit reads it: tiles of 32 rows and 16 columns, in
// which pairs of rows are interleaved.
class AmxOperand {
 public:
  // A contiguous (depth, columns) matrix, and the transpose of a contiguous (columns, depth) one.
  static AmxOperand of(const bf16* matrix, int64_t depth, int64_t columns);
  static AmxOperand of_transposed(const bf16* matrix, int64_t depth, int64_t columns);
  // To be filled, 32 rows at a time.
  static AmxOperand panel(int64_t depth, int64_t columns);

  bf16* tile(int64_t row, int64_t column) const { return tiles_.get() + row / 32 * below_ + column / 16 * next_; }
  int64_t depth() const { return depth_; }
  // How many elements the next tile of the same columns, and of the same rows, is away.
  int64_t below() const { return below_; }
  int64_t next() const { return next_; }

 private:
  AmxOperand(int64_t depth, int64_t columns, int64_t below, int64_t next);

  int64_t depth_, below_, next_;
  Lines<bf16> tiles_;
};

// The matrix unit of this thread, set up for as long as this lives.
class AmxUnit {
 public:
  AmxUnit();
  ~AmxUnit();
  AmxUnit(const AmxUnit&) = delete;
  AmxUnit& operator=(const AmxUnit&) = delete;
};

// R is the residual's type. wide or narrow is the branch, in R or bfloat16; both are null if there is none, and hidden
// is if it is not to be saved.
template <class R>
class AmxForward {
 public:
  using Operand = AmxOperand;
  static int64_t rows() { return kAmxRows; }

  AmxForward(
      const AmxOperand& down, const AmxOperand& up, const bf16* tokens, const R* residual, const R* wide,
      const bf16* narrow, R* out, bf16* hidden)
      : down_(down), up_(up), tokens_(tokens), residual_(residual), wide_(wide), narrow_(narrow), out_(out),
        hidden_(hidden), width_(down.depth()), rank_(up.depth()), token_rows_(lines<bf16>(kAmxRows * width_)),
        hidden_rows_(lines<bf16>(kAmxRows * rank_)),
        product_(lines<float>(kAmxRows * width_)) {}

  // `next` is the step to come, or null: its rows are fetched meanwhile.
  void step(const Step& rows, const Step* next);

 private:
  void add_to_residual(const Step& rows) const;

  const AmxOperand &down_, &up_;
  const bf16* tokens_;
  const R *residual_, *wide_;
  const bf16* narrow_;
  R* out_;
  bf16* hidden_;
  int64_t width_, rank_;
  Lines<bf16> token_rows_, hidden_rows_;
  Lines<float> product_;
  AmxUnit unit_;
};

// R is the gradient's type. grad_tokens is null if it is not needed.
template <class R>
class AmxBackward {
 public:
  using Operand = AmxOperand;
  static int64_t rows() { return kAmxRows; }
  // Columns of a strip of the sums: they lie row by row.
  static int64_t strip(int64_t width) { return width; }

  // The transposes of the weights; sums of r rows and C columns, grown by what the steps add: the transpose of down's
  // gradient, and up's; or null.
  AmxBackward(
      const AmxOperand& down, const AmxOperand& up, const R* grad, const bf16* tokens, const bf16* hidden,
      bf16* grad_tokens, float* down_sum, float* up_sum);

  void step(const Step& rows, const Step* next);
  // After the last step: the rest of the weights' gradients.
  void finish();

 private:
  void make_delta(const Step& rows, const bf16* grad);

  const AmxOperand &down_, &up_;
  const R* grad_;
  const bf16 *tokens_, *hidden_;
  bf16* grad_tokens_;
  float *down_sum_, *up_sum_;
  int64_t width_, rank_;
  Lines<bf16> token_rows_, grad_rows_, delta_, scaled_hidden_;
  Lines<float> product_;
  // Rows of many steps, for the products that sum over rows: the fewer of these, the less often their sums are moved.
  AmxOperand tokens_panel_, grad_panel_, delta_panel_, hidden_panel_;
  int64_t collected_ = 0;
  AmxUnit unit_;
};

}  // namespace puma
