// Softmax over a few rows of scores, and its gradient.
#pragma once

#include <cstdint>
#include <limits>

#include "exponential.h"
#include "lanes.h"
#include "simd.h"
#include "tile.h"

namespace puma {

// Panels of I rows of scores become exp(score - the row's largest).
template <int bytes, int I, int J>
PUMA_INLINE void exponentials(float* panels, int64_t columns, float* largest, float* sum) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float)), P = J * W;
  const int64_t whole = (columns - 1) / P;
  float* const end = panels + whole * P * I;
  alignas(sizeof(V)) V row[W];
  PUMA_UNROLL for (int i = 0; i < I; ++i) {
    V most = V{} - std::numeric_limits<float>::infinity();
    PUMA_UNROLL for (int j = 0; j < J; ++j) {
      float* const here = end + i * P + j * W;
      const V score = only(load<V>(here), columns - whole * P - j * W);
      store(here, score);
      most = most > score ? most : score;
    }
    for (const float* in = panels + i * P; in < end; in += P * I) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        const V score = load<V>(in + j * W);
        most = most > score ? most : score;
      }
    }
    row[i] = most;
  }
  PUMA_UNROLL for (int i = I; i < W; ++i) row[i] = row[0];
  store(largest, over_lanes<W, Maximum>(row));
  for (int i = 0; i < I; ++i) {
    V total[J] = {};
    for (float* here = panels + i * P; here < end + P * I; here += P * I) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        const V weight = exponential(load<V>(here + j * W) - largest[i]);
        store(here + j * W, weight);
        total[j] += weight;
      }
    }
    row[i] = total[0];
    PUMA_UNROLL for (int j = 1; j < J; ++j) row[i] += total[j];
  }
  PUMA_UNROLL for (int i = I; i < W; ++i) row[i] = row[0];
  store(sum, over_lanes<W, Sum>(row));
}

// Rows of weights = exp(scores - logsumexp), in place of the scores, and of score_grads = weights * (grads - their mean
// under the weights), in place of the weights' gradients and as panels.
template <int bytes, int I, int J>
PUMA_INLINE void softmax_backward(
    float* weights, float* grads, float* panels, int64_t stride, int64_t rows, int64_t columns,
    const float* logsumexp) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float)), P = J * W;
  const int64_t last = (columns - 1) / W * W;
  alignas(sizeof(V)) V row[W];
  PUMA_UNROLL for (int i = 0; i < W; ++i) row[i] = V{};
  for (int64_t i = 0; i < rows; ++i) {
    float *const w = weights + i * stride, *const g = grads + i * stride;
    store(w + last, only(load<V>(w + last), columns - last));
    V total{};
    for (int64_t c = 0; c <= last; c += W) {
      const V weight = exponential(load<V>(w + c) - logsumexp[i]);
      store(w + c, weight);
      total += weight * load<V>(g + c);
    }
    row[i] = total;
  }
  float mean[W];
  store(mean, over_lanes<W, Sum>(row));
  for (int64_t i = 0; i < rows; ++i) {
    float *const w = weights + i * stride, *const g = grads + i * stride;
    float* out = panels + i * P;
    int64_t c = 0;
    for (; c + P <= columns; c += P, out += P * I) {
      PUMA_UNROLL for (int j = 0; j < J; ++j) {
        const V grad = load<V>(w + c + j * W) * (load<V>(g + c + j * W) - mean[i]);
        store(g + c + j * W, grad);
        store(out + j * W, grad);
      }
    }
    for (; c < columns; c += W, out += W) {
      const V grad = load<V>(w + c) * (load<V>(g + c) - mean[i]);
      store(g + c, grad);
      store(out, grad);
    }
  }
}

}  // namespace puma
