// The adapter in steps, by itself: each tensor is an allocation of just its size, so that a sanitizer sees every access
// outside, and results are compared with sums in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "compare.h"
#include "step.h"

using puma::bf16;
using puma::fp16;
using puma::Step;

inline constexpr double kFactor = 0.5;

// Every third sample is dropped.
struct Sizes {
  int64_t samples, tokens, width, rank;

  int64_t elements() const { return samples * tokens * width; }
  int64_t kept_rows() const { return (samples - samples / 3) * tokens; }
  int64_t row(int64_t packed) const {
    const int64_t kept = packed / tokens;
    return (kept + kept / 2) * tokens + packed % tokens;
  }
};

template <class Adapter>
void take_steps(Adapter& adapter, const Sizes& sizes) {
  const int64_t most = Adapter::rows(), rows = sizes.kept_rows();
  std::vector<Step> steps((rows + most - 1) / most);
  for (size_t i = 0; i < steps.size(); ++i) {
    steps[i].packed = static_cast<int64_t>(i) * most;
    steps[i].count = std::min(most, rows - steps[i].packed);
    for (int64_t j = 0; j < steps[i].count; ++j) {
      steps[i].row[j] = sizes.row(steps[i].packed + j);
      steps[i].factor[j] = kFactor;
    }
  }
  for (size_t i = 0; i < steps.size(); ++i) adapter.step(steps[i], i + 1 < steps.size() ? &steps[i + 1] : nullptr);
}

struct Error {
  double largest = 0;

  // Relative to the size that a sum of so many products of values up to 1 may have by chance.
  void add(double found, double expected, int64_t terms) {
    const double error = std::abs(found - expected) / std::sqrt(static_cast<double>(terms));
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
  }
};

// R and T: of the residual and of the tokens.
template <class Forward, class Backward, class R, class T>
double largest_error(const Sizes& sizes, bool need_weights) {
  using Operand = typename Forward::Operand;
  const int64_t width = sizes.width, rank = sizes.rank, rows = sizes.kept_rows();
  const auto residual = draw<R>(sizes.elements(), 1), grad = draw<R>(sizes.elements(), 1);
  const auto tokens = draw<T>(sizes.elements(), 1), branch = draw<T>(sizes.elements(), 1);
  const auto down = draw<T>(width * rank, 1), up = draw<T>(rank * width, 1);
  std::vector<R> out(sizes.elements());
  std::vector<T> hidden(rows * rank), grad_tokens(sizes.elements());
  const auto down_operand = Operand::of(down.data(), width, rank), up_operand = Operand::of(up.data(), rank, width);
  Forward forward(
      down_operand, up_operand, tokens.data(), residual.data(), nullptr, branch.data(), out.data(), hidden.data());
  take_steps(forward, sizes);

  const int64_t strip = Backward::strip(width), sum_elements = (width + strip - 1) / strip * strip * rank;
  std::vector<float> down_sum(sum_elements), up_sum(sum_elements);
  const auto down_turned = Operand::of_transposed(down.data(), rank, width);
  const auto up_turned = Operand::of_transposed(up.data(), width, rank);
  Backward backward(
      down_turned, up_turned, grad.data(), tokens.data(), hidden.data(), grad_tokens.data(),
      need_weights ? down_sum.data() : nullptr, need_weights ? up_sum.data() : nullptr);
  take_steps(backward, sizes);
  backward.finish();

  Error error;
  std::vector<double> grad_down(width * rank), grad_up(rank * width), delta(rank);
  for (int64_t packed = 0; packed < rows; ++packed) {
    const int64_t row = sizes.row(packed) * width;
    const T* const h = hidden.data() + packed * rank;
    for (int64_t k = 0; k < rank; ++k) {
      double before = 0, through = 0;
      for (int64_t c = 0; c < width; ++c) {
        before += static_cast<double>(value_of(tokens[row + c])) * value_of(down[c * rank + k]);
        through += static_cast<double>(value_of(grad[row + c])) * value_of(up[k * width + c]);
      }
      error.add(value_of(h[k]), std::max(before, 0.0), width);
      delta[k] = value_of(h[k]) > 0 ? kFactor * through : 0;
    }
    for (int64_t c = 0; c < width; ++c) {
      double result = static_cast<double>(value_of(residual[row + c])) + value_of(branch[row + c]), token = 0;
      for (int64_t k = 0; k < rank; ++k) {
        result += kFactor * value_of(h[k]) * value_of(up[k * width + c]);
        token += delta[k] * value_of(down[c * rank + k]);
        grad_down[k * width + c] += value_of(tokens[row + c]) * delta[k];
        grad_up[k * width + c] += kFactor * value_of(h[k]) * value_of(grad[row + c]);
      }
      error.add(value_of(out[row + c]), result, width * rank);
      error.add(value_of(grad_tokens[row + c]), token, width * rank);
    }
  }
  for (int64_t k = 0; k < rank && need_weights; ++k) {
    for (int64_t c = 0; c < width; ++c) {
      const int64_t place = c / strip * strip * rank + k * strip + c % strip;
      error.add(down_sum[place], grad_down[k * width + c], rows * width);
      error.add(up_sum[place], grad_up[k * width + c], rows * width);
    }
  }
  return error.largest;
}
