// Self-attention of one head after the other on one thread, of float32 or bfloat16, computed in float32. Products run in
// tiles of registers, and what they would read across is packed first; a head's matrices stay in the second-level cache
// from one product to the next.
//
// qkv (B, N, 3, H, D), out and grad (B, N, H, D), logsumexp (B, H, N): all contiguous. Heads are numbered b * H + h.
#pragma once

#include <cstdint>

#include "lines.h"
#include "vector.h"

namespace puma {

// What the classes below can be used for: N up to the first, 0 where there are no vectors.
int64_t most_attention_tokens();
constexpr int64_t kMostHeadDim = 128, kHeadDimMultiple = 16;

// bfloat16 is left to torch where there is a matrix unit for it (AMX).
bool attention_tiles_should_run_bf16();

struct AttentionSizes {
  int64_t tokens, heads, head_dim;

  // Elements from one token to the next.
  int64_t qkv_row() const { return 3 * heads * head_dim; }
  int64_t out_row() const { return heads * head_dim; }
  // Where a head's matrix begins; of the three in qkv `part` is 0 to 2.
  int64_t in_qkv(int64_t head, int64_t part) const {
    return head / heads * tokens * qkv_row() + (part * heads + head % heads) * head_dim;
  }
  int64_t in_out(int64_t head) const { return head / heads * tokens * out_row() + head % heads * head_dim; }
};

// out = softmax(scale * q @ k^T) @ v, and the logarithms of the softmax's denominators.
template <class T>
class AttentionForward {
 public:
  AttentionForward(const AttentionSizes& sizes, float scale, const T* qkv, T* out, float* logsumexp);

  // Heads from first to last, without the last.
  void run(int64_t first, int64_t last) const;

  const AttentionSizes sizes;
  const float scale;
  const T* const qkv;
  T* const out;
  float* const logsumexp;
  // Of the head at hand; panels are matrices cut into strips of columns, see attention_tiles.cpp.
  const Lines<float> keys_turned;  // (D, N) panels
  const Lines<float> values;       // (N, D) panels
  const Lines<float> queries;      // (rows of a tile, D) panels, scaled
  const Lines<float> weights;      // (rows of a tile, N) panels
  const Lines<float> sums;         // (rows of a tile, D), of bfloat16's out before it is rounded
};

// grad_qkv from grad, the gradient of out. The weights are computed once more.
template <class T>
class AttentionBackward {
 public:
  AttentionBackward(
      const AttentionSizes& sizes, float scale, const T* grad, const T* qkv, const float* logsumexp, T* grad_qkv);

  void run(int64_t first, int64_t last) const;

  const AttentionSizes sizes;
  const float scale;
  const T* const grad;
  const T* const qkv;
  const float* const logsumexp;
  T* const grad_qkv;
  const int64_t row_elements;          // of weights and score_grads, N and zeros behind
  const int64_t block_rows;            // queries at a time
  const Lines<float> keys_turned;      // (D, N) panels
  const Lines<float> values_turned;    // (D, N) panels
  const Lines<float> keys;             // (N, D) panels
  const Lines<float> queries;          // (block_rows, D) panels, scaled
  const Lines<float> grads;            // (block_rows, D) panels
  const Lines<float> weights;          // (block_rows, row_elements)
  const Lines<float> score_grads;      // (block_rows, row_elements), first the weights' gradients
  const Lines<float> score_grad_tile;  // (rows of a tile, N) panels
  const Lines<float> sums;             // (N, 3, D), of bfloat16's grad_qkv before it is rounded
};

}  // namespace puma
