// Prompt matching's loops by themselves: each matrix is an allocation of just its size, so that a sanitizer sees every
// access outside, and results are compared with sums in double. Prints, for each size, the largest errors of products
// with the prompts, of products over the samples, of what is made of a prompt and of its gradients.
#include <cmath>
#include <cstdio>
#include <functional>
#include <utility>
#include <vector>

#include "compare.h"
#include "prompt_pool.h"
#include "prompt_products.h"

namespace {

using Matrix = std::vector<float>;
using Term = std::function<double(int64_t)>;

double sum(int64_t terms, const Term& term) {
  double total = 0;
  for (int64_t i = 0; i < terms; ++i) total += term(i);
  return total;
}

double along_pool(int64_t rows, int64_t pool, int64_t columns) {
  const Matrix left = draw(rows * columns, 1), right = draw(pool * columns, 1), squared = draw(pool * columns, 1);
  const Matrix narrow = draw(rows * pool, 1), second = draw(rows * pool, 1);
  Matrix dots(rows * pool), with_squares(rows * pool), of_squares(rows * pool), product(rows * columns),
      added(rows * columns);
  puma::multiply_right_transposed(dots.data(), left.data(), columns, right.data(), rows, pool, columns);
  puma::multiply_right_transposed_with_squares(
      with_squares.data(), of_squares.data(), left.data(), right.data(), squared.data(), rows, pool, columns);
  for (const int64_t half : {0, 1}) {
    puma::multiply(
        product.data(), narrow.data(), right.data(), rows, pool, columns, half * (columns / 2),
        half == 0 ? columns / 2 : columns);
  }
  puma::multiply_and_add(
      added.data(), narrow.data(), right.data(), left.data(), second.data(), squared.data(), rows, pool, columns);
  double error = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t m = 0; m < pool; ++m) {
      const auto at = [&](int64_t c) -> double { return left[row * columns + c]; };
      const double plain = sum(columns, [&](int64_t c) { return at(c) * right[m * columns + c]; });
      raise(error, dots[row * pool + m], plain);
      raise(error, with_squares[row * pool + m], plain);
      raise(error, of_squares[row * pool + m], sum(columns, [&](int64_t c) {
              return at(c) * at(c) * squared[m * columns + c];
            }));
    }
    for (int64_t c = 0; c < columns; ++c) {
      const auto times = [&](const Matrix& a, const Matrix& b) {
        return sum(pool, [&](int64_t m) { return static_cast<double>(a[row * pool + m]) * b[m * columns + c]; });
      };
      raise(error, product[row * columns + c], times(narrow, right));
      raise(error, added[row * columns + c], times(narrow, right) + left[row * columns + c] * times(second, squared));
    }
  }
  return error;
}

double over_samples(int64_t rows, int64_t pool, int64_t columns) {
  const Matrix left = draw(rows * pool, 1), of_squares = draw(rows * pool, 1), right = draw(rows * columns, 1);
  Matrix plain(pool * columns), with_squares(pool * columns), squared(pool * columns);
  for (const int64_t half : {0, 1}) {
    const int64_t begin = half * (columns / 2), end = half == 0 ? columns / 2 : columns;
    puma::multiply_left_transposed(plain.data(), left.data(), right.data(), rows, pool, columns, begin, end);
    puma::multiply_left_transposed_with_squares(
        with_squares.data(), squared.data(), left.data(), of_squares.data(), right.data(), rows, pool, columns, begin,
        end);
  }
  double error = 0;
  for (int64_t m = 0; m < pool; ++m) {
    for (int64_t c = 0; c < columns; ++c) {
      const auto at = [&](int64_t row) -> double { return right[row * columns + c]; };
      const double expected = sum(rows, [&](int64_t row) { return left[row * pool + m] * at(row); });
      raise(error, plain[m * columns + c], expected);
      raise(error, with_squares[m * columns + c], expected);
      raise(error, squared[m * columns + c], sum(rows, [&](int64_t row) {
              return of_squares[row * pool + m] * at(row) * at(row);
            }));
    }
  }
  return error;
}

// Errors of the row and of the gradients.
std::pair<double, double> one_prompt(int64_t width) {
  const Matrix key = draw(width, 1), attention = draw(width, 8);
  const Matrix product_grad = draw(width, 1), square_grad = draw(width, 1);  // the latter twice that of the squares
  Matrix focus(width), unit(width), product(width), square(width), key_grad(width), attention_grad(width);
  const puma::PromptRow<float> row{focus.data(), unit.data(), product.data(), square.data()};
  const float norm = puma::prepare_prompt(row, key.data(), attention.data(), width);
  puma::prompt_gradients(
      key_grad.data(), attention_grad.data(), product_grad.data(), square_grad.data(), row, norm, width);
  const double total = sum(width, [&](int64_t c) { return std::exp(static_cast<double>(attention[c])); });
  const double length = std::sqrt(sum(width, [&](int64_t c) { return static_cast<double>(key[c]) * key[c]; }));
  const auto s = [&](int64_t c) { return std::exp(static_cast<double>(attention[c])) / total; };
  const auto u = [&](int64_t c) { return key[c] / length; };
  const auto to_focus = [&](int64_t c) { return product_grad[c] * u(c) + s(c) * square_grad[c]; };
  const double mean = sum(width, [&](int64_t c) { return s(c) * to_focus(c); });
  const double along = sum(width, [&](int64_t c) { return u(c) * product_grad[c] * s(c); });
  double row_error = 0, grad_error = 0;
  raise(row_error, norm / length, 1);
  for (int64_t c = 0; c < width; ++c) {
    raise(row_error, focus[c], s(c));
    raise(row_error, unit[c], u(c));
    raise(row_error, product[c], s(c) * u(c));
    raise(row_error, square[c], s(c) * s(c));
    raise(grad_error, attention_grad[c], s(c) * (to_focus(c) - mean));
    raise(grad_error, key_grad[c] * length, product_grad[c] * s(c) - u(c) * along);
  }
  return {row_error, grad_error};
}

}  // namespace

int main() {
  const int64_t sizes[][3] = {{1, 1, 1}, {2, 3, 7}, {5, 20, 100}, {17, 6, 48}, {33, 11, 65}, {180, 20, 384}};
  for (const auto& [rows, pool, columns] : sizes) {
    const auto [row, gradients] = one_prompt(columns);
    std::printf("%g %g %g %g\n", along_pool(rows, pool, columns), over_samples(rows, pool, columns), row, gradients);
  }
}
