// The frozen MLP on vector registers, by itself: each tensor is an allocation of just its size, so that a sanitizer sees
// every access outside, and results are compared with sums in double. Prints the largest errors of output and gradient.
#include "vector_mlp.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "compare.h"

namespace {

using puma::VectorMlp;
using puma::VectorOperand;

void print_errors(int64_t rows, int64_t in, int64_t hidden, int64_t out, bool bias) {
  const auto input = draw(rows * in, 1), grad = draw(rows * out, 1);
  const auto fc1 = draw(hidden * in, 1), fc2 = draw(out * hidden, 1);
  const auto bias1 = draw(hidden, 1), bias2 = draw(out, 1);
  std::vector<float> output(rows * out), grad_input(rows * in);
  std::vector<uint8_t> slopes(puma::slope_bytes(rows, hidden));
  const float* const first_bias = bias ? bias1.data() : nullptr;
  const float* const second_bias = bias ? bias2.data() : nullptr;
  const auto first = VectorOperand::of_transposed(fc1.data(), in, hidden);
  const auto second = VectorOperand::of_transposed(fc2.data(), hidden, out);
  const auto first_back = VectorOperand::of(fc2.data(), out, hidden);
  const auto second_back = VectorOperand::of(fc1.data(), hidden, in);
  // As two threads would.
  const int64_t groups = VectorMlp::groups(rows), half = groups / 2;
  for (const auto& [begin, end] : {std::pair{int64_t{0}, half}, std::pair{half, groups}}) {
    VectorMlp(first, second, rows)
        .forward(input.data(), first_bias, second_bias, output.data(), slopes.data(), begin, end);
  }
  for (const auto& [begin, end] : {std::pair{int64_t{0}, groups - half}, std::pair{groups - half, groups}}) {
    VectorMlp(first_back, second_back, rows).backward(grad.data(), slopes.data(), grad_input.data(), begin, end);
  }
  std::vector<float> unsaved(output.size());
  VectorMlp(first, second, rows).forward(input.data(), first_bias, second_bias, unsaved.data(), nullptr, 0, groups);

  double output_error = unsaved == output ? 0 : INFINITY, grad_error = 0;
  std::vector<double> value(hidden), back(hidden);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t h = 0; h < hidden; ++h) {
      double before = bias ? bias1[h] : 0, through = 0;
      for (int64_t c = 0; c < in; ++c) before += static_cast<double>(input[row * in + c]) * fc1[h * in + c];
      for (int64_t c = 0; c < out; ++c) through += static_cast<double>(grad[row * out + c]) * fc2[c * hidden + h];
      const double cumulated = std::erfc(-before / std::sqrt(2)) / 2;
      value[h] = before * cumulated;
      back[h] = through * (cumulated + before * std::exp(-before * before / 2) / std::sqrt(2 * M_PI));
    }
    for (int64_t c = 0; c < out; ++c) {
      double expected = bias ? bias2[c] : 0;
      for (int64_t h = 0; h < hidden; ++h) expected += value[h] * fc2[c * hidden + h];
      raise(output_error, output[row * out + c], expected);
    }
    for (int64_t c = 0; c < in; ++c) {
      double expected = 0;
      for (int64_t h = 0; h < hidden; ++h) expected += back[h] * fc1[h * in + c];
      raise(grad_error, grad_input[row * in + c], expected);
    }
  }
  // Relative to the size that sums of so many products of values up to 1 may have by chance.
  const double size = std::sqrt(static_cast<double>(hidden * std::max(in, out)));
  std::printf("%.2e %.2e\n", output_error / size, grad_error / size);
}

}  // namespace

int main() {
  // One row; less than a tile, and widths that end within a panel; several blocks; sums in two parts.
  for (const bool bias : {true, false}) {
    print_errors(1, 16, 16, 16, bias);
    print_errors(5, 48, 80, 32, bias);
    print_errors(83, 16, 3088, 48, bias);
    print_errors(150, 80, 1040, 16, bias);
  }
}
