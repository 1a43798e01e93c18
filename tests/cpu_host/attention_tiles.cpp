// Attention on vector registers, by itself: each tensor is an allocation of just its size, so that a sanitizer sees
// every access outside, and results are compared with sums in double. Prints the largest errors of out, logsumexp and
// gradients, of float32 and of bfloat16.
#include "attention_tiles.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "compare.h"

namespace {

template <class T>
void print_errors(int64_t samples, const puma::AttentionSizes& sizes) {
  const int64_t tokens = sizes.tokens, width = sizes.head_dim, heads = samples * sizes.heads;
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  const auto qkv = draw<T>(samples * tokens * sizes.qkv_row(), 2), grad = draw<T>(samples * tokens * sizes.out_row(), 2);
  std::vector<T> out(grad.size()), grad_qkv(qkv.size());
  std::vector<float> logsumexp(heads * tokens);
  // As two threads would.
  for (const int64_t half : {0, 1}) {
    const int64_t first = half * (heads / 2), last = half == 0 ? heads / 2 : heads;
    puma::AttentionForward<T>(sizes, static_cast<float>(scale), qkv.data(), out.data(), logsumexp.data())
        .run(first, last);
  }
  for (const int64_t half : {0, 1}) {
    const int64_t first = half * (heads / 2), last = half == 0 ? heads / 2 : heads;
    puma::AttentionBackward<T>(
        sizes, static_cast<float>(scale), grad.data(), qkv.data(), logsumexp.data(), grad_qkv.data())
        .run(first, last);
  }
  double out_error = 0, logsumexp_error = 0, grad_error = 0;
  for (int64_t head = 0; head < heads; ++head) {
    const T* part[3];
    for (int64_t i = 0; i < 3; ++i) part[i] = qkv.data() + sizes.in_qkv(head, i);
    const auto at = [&](int64_t i, int64_t token, int64_t c) -> double {
      return value_of(part[i][token * sizes.qkv_row() + c]);
    };
    const auto in_out = [&](int64_t token, int64_t c) { return sizes.in_out(head) + token * sizes.out_row() + c; };
    std::vector<double> grads[3];
    for (auto& each : grads) each.resize(tokens * width);
    for (int64_t i = 0; i < tokens; ++i) {
      std::vector<double> weights(tokens), weight_grads(tokens);
      double sum = 0, mean = 0;
      for (int64_t j = 0; j < tokens; ++j) {
        double score = 0;
        for (int64_t c = 0; c < width; ++c) {
          score += at(0, i, c) * at(1, j, c);
          weight_grads[j] += value_of(grad[in_out(i, c)]) * at(2, j, c);
        }
        weights[j] = std::exp(scale * score);
        sum += weights[j];
      }
      raise(logsumexp_error, logsumexp[head * tokens + i], std::log(sum));
      for (int64_t j = 0; j < tokens; ++j) {
        weights[j] /= sum;
        mean += weights[j] * weight_grads[j];
      }
      for (int64_t c = 0; c < width; ++c) {
        double expected = 0;
        for (int64_t j = 0; j < tokens; ++j) {
          const double score_grad = scale * weights[j] * (weight_grads[j] - mean);
          expected += weights[j] * at(2, j, c);
          grads[0][i * width + c] += score_grad * at(1, j, c);
          grads[1][j * width + c] += score_grad * at(0, i, c);
          grads[2][j * width + c] += weights[j] * value_of(grad[in_out(i, c)]);
        }
        raise(out_error, value_of(out[in_out(i, c)]), expected);
      }
    }
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t c = 0; c < width; ++c) {
          const T found = grad_qkv[sizes.in_qkv(head, i) + token * sizes.qkv_row() + c];
          raise(grad_error, value_of(found), grads[i][token * width + c]);
        }
      }
    }
  }
  std::printf("%.2e %.2e %.2e ", out_error, logsumexp_error, grad_error);
}

}  // namespace

int main() {
  // One token; fewer keys than a vector holds; whole vectors and tiles; a rest behind them, and a D that is no multiple
  // of a tile's columns; the largest D; queries in several blocks and keys in two sums.
  constexpr puma::AttentionSizes kSizes[] = {{1, 1, 16},  {5, 3, 48},   {112, 1, 32},
                                              {61, 2, 80}, {29, 2, 128}, {600, 1, 16}};
  for (const puma::AttentionSizes& sizes : kSizes) {
    print_errors<float>(2, sizes);
    print_errors<puma::bf16>(2, sizes);
    std::printf("\n");
  }
}
