// Prompt matching on the CPU. With S = softmax(attention) and U = keys / |keys|, cosines need two products of (B, C)
// with (C, M) matrices, query with S*U and query^2 with S^2; the (B, M, C) tensor of focused queries is never built.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>

#include "gemm.h"
#include "prompt_products.h"

namespace puma {
namespace {

template <class T>
std::unique_ptr<T[]> buffer(int64_t elements) {
  return std::unique_ptr<T[]>(new T[elements]);
}

// What both directions need of the pool: focus S, unit keys U, S*U, S^2 (all (M, C)) and |keys| (M,).
template <class T>
struct Pool {
  Tensor focus_tensor;
  const T* focus;
  std::unique_ptr<T[]> unit, product, square, norm;
};

template <class T>
Pool<T> prepare(const Tensor& keys, const Tensor& attention) {
  const int64_t pool = keys.size(0), width = keys.size(1);
  std::array<StableIValue, 3> stack{
      torch::stable::detail::from(attention), torch::stable::detail::from(int64_t{1}),
      torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_softmax", "", stack.data(), TORCH_ABI_VERSION));
  Pool<T> p{torch::stable::detail::to<Tensor>(stack[0]), nullptr, buffer<T>(pool * width), buffer<T>(pool * width),
            buffer<T>(pool * width), buffer<T>(pool)};
  p.focus = const_data<T>(p.focus_tensor);
  const T* const key = const_data<T>(keys);
  for (int64_t m = 0; m < pool; ++m) {
    double sum = 0;
    for (int64_t c = 0; c < width; ++c) sum += static_cast<double>(key[m * width + c]) * key[m * width + c];
    p.norm[m] = std::max(static_cast<T>(std::sqrt(sum)), std::numeric_limits<T>::min());
    const T inverse = 1 / p.norm[m];
    for (int64_t c = 0, i = m * width; c < width; ++c, ++i) {
      p.unit[i] = key[i] * inverse;
      p.product[i] = p.focus[i] * p.unit[i];
      p.square[i] = p.focus[i] * p.focus[i];
    }
  }
  return p;
}

template <class T>
std::unique_ptr<T[]> squared(const T* values, int64_t elements) {
  auto out = buffer<T>(elements);
  T* const to = out.get();
  torch::stable::parallel_for(0, elements, 1 << 16, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = values[i] * values[i];
  });
  return out;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& query, const Tensor& keys, const Tensor& attention, const Tensor& prompts) {
  const int64_t samples = query.size(0), width = query.size(1), pool = keys.size(0), length = prompts.size(1);
  const Tensor prompt = empty<3>({samples, length, width}, scalar_type<T>());
  const Tensor weights = empty<2>({samples, pool}, scalar_type<T>());
  const Tensor inverse_norm = empty<2>({samples, pool}, scalar_type<T>());
  if (samples == 0) return {prompt, weights, inverse_norm};

  const Pool<T> p = prepare<T>(keys, attention);
  const T* const q = const_data<T>(query);
  const auto q_square = squared(q, samples * width);
  T* const w = mutable_data<T>(weights);
  T* const inverse = mutable_data<T>(inverse_norm);
  multiply_right_transposed(w, q, p.product.get(), samples, pool, width);
  multiply_right_transposed(inverse, q_square.get(), p.square.get(), samples, pool, width);
  for (int64_t i = 0; i < samples * pool; ++i) {
    inverse[i] = 1 / std::sqrt(std::max(inverse[i], std::numeric_limits<T>::min()));
    w[i] *= inverse[i];
  }
  multiply(mutable_data<T>(prompt), w, const_data<T>(prompts), samples, pool, length * width);
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
  const Tensor grad_query = need_query ? empty<2>({samples, width}, dtype) : empty<1>({0}, dtype);
  const Tensor grad_keys = empty<2>({pool, width}, dtype), grad_attention = empty<2>({pool, width}, dtype);
  const Tensor grad_prompts = empty<3>({pool, length, width}, dtype);
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

  // Gradient of the weights, then of the numerator and of the squared norm, in place.
  const auto numerator = buffer<T>(cells), norm_squared = buffer<T>(cells);
  if (grad_prompt.has_value()) {
    const T* const g = const_data<T>(*grad_prompt);
    multiply_right_transposed(numerator.get(), g, const_data<T>(prompts), samples, pool, features);
    multiply_left_transposed(gp, w, g, samples, pool, features);
  } else {
    std::fill_n(numerator.get(), cells, T{0});
    std::fill_n(gp, pool * features, T{0});
  }
  const T* const gw = grad_weights.has_value() ? const_data<T>(*grad_weights) : nullptr;
  const T clamped = 1 / std::sqrt(std::numeric_limits<T>::min());
  for (int64_t i = 0; i < cells; ++i) {
    const T total = numerator[i] + (gw == nullptr ? T{0} : gw[i]);
    norm_squared[i] = inverse[i] < clamped ? T(-0.5) * total * w[i] * inverse[i] * inverse[i] : T{0};
    numerator[i] = total * inverse[i];
  }

  const auto q_square = squared(q, samples * width);
  const auto product = buffer<T>(pool * width), square = buffer<T>(pool * width);  // gradients of S*U and of S^2
  multiply_left_transposed(product.get(), numerator.get(), q, samples, pool, width);
  multiply_left_transposed(square.get(), norm_squared.get(), q_square.get(), samples, pool, width);
  T* const gk = mutable_data<T>(grad_keys);
  T* const ga = mutable_data<T>(grad_attention);
  for (int64_t m = 0; m < pool; ++m) {
    double along_focus = 0, along_unit = 0;
    for (int64_t c = 0, i = m * width; c < width; ++c, ++i) {
      ga[i] = product[i] * p.unit[i] + 2 * p.focus[i] * square[i];
      gk[i] = product[i] * p.focus[i];
      along_focus += static_cast<double>(p.focus[i]) * ga[i];
      along_unit += static_cast<double>(p.unit[i]) * gk[i];
    }
    if (p.norm[m] <= std::numeric_limits<T>::min()) along_unit = 0;  // the norm was clamped: a constant
    const T inverse_key = 1 / p.norm[m];
    for (int64_t c = 0, i = m * width; c < width; ++c, ++i) {
      ga[i] = p.focus[i] * (ga[i] - static_cast<T>(along_focus));
      gk[i] = (gk[i] - p.unit[i] * static_cast<T>(along_unit)) * inverse_key;
    }
  }
  if (need_query) {
    T* const gq = mutable_data<T>(grad_query);
    const auto through_norm = buffer<T>(samples * width);
    multiply(gq, numerator.get(), p.product.get(), samples, pool, width);
    multiply(through_norm.get(), norm_squared.get(), p.square.get(), samples, pool, width);
    for (int64_t i = 0; i < samples * width; ++i) gq[i] += 2 * q[i] * through_norm[i];
  }
  return {grad_query, grad_keys, grad_attention, grad_prompts};
}

std::tuple<Tensor, Tensor, Tensor> match_prompts(
    const Tensor& query, const Tensor& keys, const Tensor& attention, const Tensor& prompts) {
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
