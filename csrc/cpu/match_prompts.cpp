// Prompt matching on the CPU. With S = softmax(attention) and U = keys / |keys|, cosines need two products of (B, C)
// with (C, M) matrices, query with S*U and query^2 with S^2; the (B, M, C) tensor of focused queries is never built.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>

#include "../arguments.h"
#include "gemm.h"
#include "prompt_pool.h"
#include "prompt_products.h"

namespace puma {
namespace {

template <class T>
std::unique_ptr<T[]> buffer(int64_t elements) {
  return std::unique_ptr<T[]>(new T[elements]);
}

constexpr int64_t WORTH_A_THREAD = 1 << 19;  // multiply-adds

// Calls body(first row, rows) for each thread's rows; `work` is the multiply-adds of one.
template <class F>
void for_rows(int64_t rows, int64_t work, const F& body) {
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / work);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) { body(begin, end - begin); });
}

// Calls body(first block, last block) for each thread's blocks of columns, `rows_of_work` multiply-adds for each column.
template <class F>
void for_blocks(int64_t blocks, int64_t columns, int64_t rows_of_work, const F& body) {
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (rows_of_work * std::min(columns, COLUMN_BLOCK)));
  torch::stable::parallel_for(0, blocks, grain, body);
}

// Calls body(m) for each prompt: a few passes over `width` elements.
template <class F>
void for_prompts(int64_t pool, int64_t width, const F& body) {
  constexpr int64_t kWorthAThread = 1 << 12;  // elements
  torch::stable::parallel_for(
      0, pool, std::max<int64_t>(1, kWorthAThread / width), [&](int64_t begin, int64_t end) {
        for (int64_t m = begin; m < end; ++m) body(m);
      });
}

int64_t blocks_of(int64_t columns) { return (columns + COLUMN_BLOCK - 1) / COLUMN_BLOCK; }

// What both directions need of all prompts (see prompt_pool.h), matrices (M, C), and |keys| (M,).
template <class T>
struct Pool {
  int64_t width;
  std::unique_ptr<T[]> focus, unit, product, square, norm;

  PromptRow<T> row(int64_t m) const {
    const int64_t start = m * width;
    return {focus.get() + start, unit.get() + start, product.get() + start, square.get() + start};
  }
};

template <class T>
Pool<T> prepare(const Tensor& keys, const Tensor& attention) {
  const int64_t pool = keys.size(0), width = keys.size(1), all = pool * width;
  Pool<T> p{width, buffer<T>(all), buffer<T>(all), buffer<T>(all), buffer<T>(all), buffer<T>(pool)};
  const T *const key = const_data<T>(keys), *const logits = const_data<T>(attention);
  for_prompts(pool, width, [&](int64_t m) {
    p.norm[m] = prepare_prompt(p.row(m), key + m * width, logits + m * width, width);
  });
  return p;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& query, const Tensor& keys, const Tensor& attention, const Tensor& prompts) {
  const int64_t samples = query.size(0), width = query.size(1), pool = keys.size(0), length = prompts.size(1);
  const Tensor prompt = empty({samples, length, width}, scalar_type<T>());
  const Tensor weights = empty({samples, pool}, scalar_type<T>());
  const Tensor inverse_norm = empty({samples, pool}, scalar_type<T>());
  if (samples == 0) return {prompt, weights, inverse_norm};

  const Pool<T> p = prepare<T>(keys, attention);
  const T* const q = const_data<T>(query);
  const T* const pool_prompts = const_data<T>(prompts);
  T* const out = mutable_data<T>(prompt);
  T* const all_weights = mutable_data<T>(weights);
  T* const all_inverse = mutable_data<T>(inverse_norm);
  for_rows(samples, 2 * pool * width, [&](int64_t first, int64_t rows) {
    T* const w = all_weights + first * pool;
    T* const inverse = all_inverse + first * pool;
    multiply_right_transposed_with_squares(
        w, inverse, q + first * width, p.product.get(), p.square.get(), rows, pool, width);
    for (int64_t i = 0; i < rows * pool; ++i) {
      inverse[i] = 1 / std::sqrt(std::max(inverse[i], std::numeric_limits<T>::min()));
      w[i] *= inverse[i];
    }
  });
  const int64_t features = length * width;
  for_blocks(blocks_of(features), features, samples * pool, [&](int64_t begin, int64_t end) {
    multiply(
        out, all_weights, pool_prompts, samples, pool, features, begin * COLUMN_BLOCK,
        std::min(end * COLUMN_BLOCK, features));
  });
  return {prompt, weights, inverse_norm};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const std::optional<Tensor>& grad_prompt, const std::optional<Tensor>& grad_weights, const Tensor& query,
    const Tensor& keys, const Tensor& attention, const Tensor& prompts, const Tensor& weights,
    const Tensor& inverse_norm, bool need_query) {
  const int64_t samples = query.size(0), width = query.size(1), pool = keys.size(0), length = prompts.size(1);
  const int64_t features = length * width, cells = samples * pool;
  constexpr ScalarType dtype = scalar_type<T>();
  const Tensor grad_query = need_query ? empty({samples, width}, dtype) : empty({0}, dtype);
  const Tensor grad_keys = empty({pool, width}, dtype), grad_attention = empty({pool, width}, dtype);
  const Tensor grad_prompts = empty({pool, length, width}, dtype);
  T* const gp = mutable_data<T>(grad_prompts);
  if (samples == 0) {
    std::fill_n(mutable_data<T>(grad_keys), pool * width, T{0});
    std::fill_n(mutable_data<T>(grad_attention), pool * width, T{0});
    std::fill_n(gp, pool * features, T{0});
    return {grad_query, grad_keys, grad_attention, grad_prompts};
  }

  const Pool<T> p = prepare<T>(keys, attention);
  const T* const q = const_data<T>(query);
  const T* const w = const_data<T>(weights);
  const T* const inverse = const_data<T>(inverse_norm);

  const T* const g = grad_prompt.has_value() ? const_data<T>(*grad_prompt) : nullptr;
  const T* const gw = grad_weights.has_value() ? const_data<T>(*grad_weights) : nullptr;
  const T* const pool_prompts = const_data<T>(prompts);
  T* const gq = need_query ? mutable_data<T>(grad_query) : nullptr;

  // The prompts' gradients, and the products of grad_prompt with the prompts, which are summed block by block: so they
  // do not depend on the threads.
  const int64_t prompt_blocks = g == nullptr ? 0 : blocks_of(features);
  const auto parts = buffer<T>(prompt_blocks * cells);
  if (g == nullptr) std::fill_n(gp, pool * features, T{0});
  for_blocks(prompt_blocks, features, 2 * samples * pool, [&](int64_t first, int64_t last) {
    const auto some_prompts = buffer<T>(pool * COLUMN_BLOCK);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * COLUMN_BLOCK, end = std::min(begin + COLUMN_BLOCK, features), count = end - begin;
      for (int64_t m = 0; m < pool; ++m) {
        std::copy_n(pool_prompts + m * features + begin, count, some_prompts.get() + m * count);
      }
      multiply_right_transposed(
          parts.get() + block * cells, g + begin, features, some_prompts.get(), samples, pool, count);
      multiply_left_transposed(gp, w, g, samples, pool, features, begin, end);
    }
  });

  // Of each sample: the gradient of its weights, then of the numerators and, twice, of the squared norms, in place.
  const auto numerators = buffer<T>(cells), norms_squared = buffer<T>(cells);
  const T clamped = 1 / std::sqrt(std::numeric_limits<T>::min());
  for_rows(samples, 2 * pool * width, [&](int64_t first, int64_t rows) {
    T* const numerator = numerators.get();
    T* const norm_squared = norms_squared.get();
    const int64_t begin = first * pool, end = (first + rows) * pool;
    for (int64_t i = begin; i < end; ++i) numerator[i] = gw == nullptr ? T{0} : gw[i];
    for (int64_t block = 0; block < prompt_blocks; ++block) {
      for (int64_t i = begin; i < end; ++i) numerator[i] += parts[block * cells + i];
    }
    for (int64_t i = begin; i < end; ++i) {
      norm_squared[i] = inverse[i] < clamped ? T(-1) * numerator[i] * w[i] * inverse[i] * inverse[i] : T{0};
      numerator[i] *= inverse[i];
    }
    if (!need_query) return;
    multiply_and_add(
        gq + first * width, numerator + first * pool, p.product.get(), q + first * width, norm_squared + first * pool,
        p.square.get(), rows, pool, width);
  });

  // Of the pool: of S*U and of S^2, sums over the samples; threads share the columns.
  const auto product = buffer<T>(pool * width), square = buffer<T>(pool * width);
  constexpr int64_t kColumns = 64;
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (2 * samples * pool * kColumns));
  torch::stable::parallel_for(0, (width + kColumns - 1) / kColumns, grain, [&](int64_t begin, int64_t end) {
    multiply_left_transposed_with_squares(
        product.get(), square.get(), numerators.get(), norms_squared.get(), q, samples, pool, width, begin * kColumns,
        std::min(end * kColumns, width));
  });

  T *const gk = mutable_data<T>(grad_keys), *const ga = mutable_data<T>(grad_attention);
  for_prompts(pool, width, [&](int64_t m) {
    const int64_t start = m * width;
    prompt_gradients(
        gk + start, ga + start, product.get() + start, square.get() + start, p.row(m), p.norm[m], width);
  });
  return {grad_query, grad_keys, grad_attention, grad_prompts};
}

std::tuple<Tensor, Tensor, Tensor> match_prompts(
    const Tensor& query, const Tensor& keys, const Tensor& attention, const Tensor& prompts) {
  check_prompts(query, keys, attention, prompts);
  const auto run = query.scalar_type() == ScalarType::Double ? &forward<double> : &forward<float>;
  return run(
      as_contiguous(query), as_contiguous(keys), as_contiguous(attention), as_contiguous(prompts));
}

std::optional<Tensor> given(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return as_contiguous(*tensor);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> match_prompts_backward(
    const std::optional<Tensor>& grad_prompt, const std::optional<Tensor>& grad_weights, const Tensor& query,
    const Tensor& keys, const Tensor& attention, const Tensor& prompts, const Tensor& weights,
    const Tensor& inverse_norm, bool need_query) {
  check_prompts_backward(grad_prompt, grad_weights, query, keys, attention, prompts, weights, inverse_norm);
  const auto run = query.scalar_type() == ScalarType::Double ? &backward<double> : &backward<float>;
  return run(
      given(grad_prompt), given(grad_weights), as_contiguous(query), as_contiguous(keys), as_contiguous(attention),
      as_contiguous(prompts), as_contiguous(weights), as_contiguous(inverse_norm), need_query);
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CPU, m) {
  m.impl("match_prompts", TORCH_BOX(&puma::match_prompts));
  m.impl("match_prompts_backward", TORCH_BOX(&puma::match_prompts_backward));
}
