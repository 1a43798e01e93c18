// The stochastic adapter in bfloat16 on vector registers whose lanes multiply pairs of it and add both products to a float32
// (AVX-512 BF16): a few rows at a time go through both products and all that surrounds them, at twice the rate of float32
// where the processor has the units.
#pragma once

#include "lines.h"
#include "simd.h"
#include "step.h"
#include "tile.h"
#include "vector.h"

namespace puma {

// Of one step: as many as two tiles have.
constexpr int64_t kPairRows = 28;
static_assert(kPairRows <= kMostStepRows);

// C must be a multiple of 32, r of 16.
bool pairs_serve(int64_t width, int64_t rank);

// Of a panel of a right-hand side, and of a block of a left-hand side.
constexpr int64_t kPairColumns = 32;

// The right-hand side of a product, (depth, columns), both filled up with zeros to multiples of kPairColumns: panels of that
// many columns, in which pairs of rows are interleaved.
class PairOperand {
 public:
  // A contiguous (depth, columns) matrix, and the transpose of a contiguous (columns, depth) one.
  static PairOperand of(const bf16* matrix, int64_t depth, int64_t columns);
  static PairOperand of_transposed(const bf16* matrix, int64_t depth, int64_t columns);

  // The one that begins with this column.
  const bf16* panel(int64_t column) const { return panels_.get() + column * filled_depth(); }
  int64_t depth() const { return depth_; }
  int64_t filled_depth() const { return rounded_up(depth_, kPairColumns); }

 private:
  PairOperand(int64_t depth, int64_t columns)
      : depth_(depth), panels_(lines<bf16>(filled_depth() * rounded_up(columns, kPairColumns))) {}

  int64_t depth_;
  Lines<bf16> panels_;
};

// R is the residual's type. wide or narrow is the branch, in R or bfloat16; both are null if there is none, and hidden
// is if it is not to be saved.
template <class R>
class PairForward {
 public:
  using Operand = PairOperand;
  static int64_t rows() { return kPairRows; }

  PairForward(
      const PairOperand& down, const PairOperand& up, const bf16* tokens, const R* residual, const R* wide,
      const bf16* narrow, R* out, bf16* hidden)
      : down_(down), up_(up), tokens_(tokens), residual_(residual), wide_(wide), narrow_(narrow), out_(out),
        hidden_(hidden), width_(down.depth()), rank_(up.depth()), token_tile_(lines<bf16>(kPairRows * width_)),
        hidden_tile_(lines<bf16>(kPairRows * up.filled_depth())) {}

  // `next` is the step to come, or null: its rows are fetched meanwhile.
  void step(const Step& rows, const Step* next);

 private:
  const PairOperand &down_, &up_;
  const bf16* tokens_;
  const R *residual_, *wide_;
  const bf16* narrow_;
  R* out_;
  bf16* hidden_;
  int64_t width_, rank_;
  Lines<bf16> token_tile_, hidden_tile_;
};

// R is the gradient's type. grad_tokens is null if it is not needed.
template <class R>
class PairBackward {
 public:
  using Operand = PairOperand;
  static int64_t rows() { return kPairRows; }
  // The sums lie as strips of this many columns, see SumLayout.
  static int64_t strip(int64_t width);

  // The transposes of the weights; sums of r rows and C columns, grown by what the steps add: the transpose of down's
  // gradient, and up's; or null.
  PairBackward(
      const PairOperand& down, const PairOperand& up, const R* grad, const bf16* tokens, const bf16* hidden,
      bf16* grad_tokens, float* down_sum, float* up_sum);

  void step(const Step& rows, const Step* next);
  // After the last step: the rest of the weights' gradients.
  void finish();

 private:
  void make_delta(const Step& rows);

  const PairOperand &down_, &up_;
  const R* grad_;
  const bf16 *tokens_, *hidden_;
  bf16* grad_tokens_;
  float *down_sum_, *up_sum_;
  int64_t width_, rank_;
  Lines<bf16> grad_tile_, delta_tile_;
  // Rows of many steps, for the products that sum over rows: the fewer of these, the less often their sums are moved.
  // Pairs of rows are interleaved.
  Lines<bf16> delta_panel_, hidden_panel_, strip_;
  Lines<int64_t> collected_rows_;
  int64_t collected_ = 0;
};

}  // namespace puma
