// What both operators ask of their arguments, on every device: kernels read memory as the types and sizes that they are
// told. Which argument does not fit, and what would, is said in Python (puma_plugin/ops): only there is it known by name.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <utility>

#include "tensors.h"

namespace puma {

inline bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  const auto own = tensor.sizes();
  return own.size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), own.begin());
}

inline bool is_half(int32_t type) {
  return type == type_number(ScalarType::BFloat16) || type == type_number(ScalarType::Half);
}

// Whether `type` is that of the tokens, or float32 next to half types.
inline bool type_beside(int32_t type, int32_t tokens) {
  return type == tokens || (type == type_number(ScalarType::Float) && is_half(tokens));
}

inline bool on_device_of(const Tensor& first, std::initializer_list<const Tensor*> others) {
  const auto device = [](const Tensor& tensor) {
    std::pair<int32_t, int32_t> type_and_index;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type_and_index.first));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &type_and_index.second));
    return type_and_index;
  };
  const auto wanted = device(first);
  return std::all_of(others.begin(), others.end(), [&](const Tensor* other) { return device(*other) == wanted; });
}

// The gate is float64 next to float64 tokens, else float32.
inline void check_adapter(
    const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
    const std::optional<Tensor>& gate, const std::optional<Tensor>& branch) {
  STD_TORCH_CHECK(
      residual.dim() == 3 && down.dim() == 2,
      "puma::stochastic_adapter: residual and gradient must be (B, N, C) and down (C, r)");
  const int64_t samples = residual.size(0), length = residual.size(1), width = residual.size(2), rank = down.size(1);
  STD_TORCH_CHECK(
      width >= 1 && rank >= 1 && has_sizes(tokens, {samples, length, width}) && has_sizes(down, {width, rank}) &&
          has_sizes(up, {rank, width}) && (!gate.has_value() || has_sizes(*gate, {samples})) &&
          (!branch.has_value() || has_sizes(*branch, {samples, length, width})),
      "puma::stochastic_adapter: the sizes do not fit each other");
  const int32_t type = type_number(tokens), wide = type_number(residual), weights = type_number(down);
  const int32_t single = type_number(ScalarType::Float), twice = type_number(ScalarType::Double);
  STD_TORCH_CHECK(
      type_number(up) == weights && type_beside(weights, type),
      "puma::stochastic_adapter: down and up must have the dtype of tokens, or float32 next to half types");
  STD_TORCH_CHECK(
      (type == single || type == twice || is_half(type)) && type_beside(wide, type) &&
          (!gate.has_value() || type_number(*gate) == (type == twice ? twice : single)) &&
          (!branch.has_value() || type_number(*branch) == wide || type_number(*branch) == type),
      "puma::stochastic_adapter: the dtypes do not fit each other");
  STD_TORCH_CHECK(
      on_device_of(residual, {&tokens, &down, &up}) && (!gate.has_value() || on_device_of(residual, {&*gate})) &&
          (!branch.has_value() || on_device_of(residual, {&*branch})),
      "puma::stochastic_adapter: all tensors must be on one device");
}

inline void check_adapter_backward(
    const Tensor& grad, const Tensor& tokens, const Tensor& down, const Tensor& up, const std::optional<Tensor>& gate,
    const Tensor& hidden, const Tensor& prepared) {
  check_adapter(grad, tokens, down, up, gate, std::nullopt);
  STD_TORCH_CHECK(
      has_sizes(hidden, {tokens.size(0) * tokens.size(1), down.size(1)}) &&
          type_number(hidden) == type_number(tokens) && has_type(prepared, ScalarType::Byte) &&
          on_device_of(grad, {&hidden, &prepared}),
      "puma::stochastic_adapter: hidden and prepared must be what the forward returned with save_hidden");
}

inline void check_prompts(const Tensor& query, const Tensor& keys, const Tensor& attention, const Tensor& prompts) {
  STD_TORCH_CHECK(
      query.dim() == 2 && keys.dim() == 2 && prompts.dim() == 3,
      "puma::match_prompts: query must be (B, C), keys (M, C) and prompts (M, L, C)");
  const int64_t width = query.size(1), pool = keys.size(0), length = prompts.size(1);
  STD_TORCH_CHECK(
      width >= 1 && pool >= 1 && length >= 1 && has_sizes(keys, {pool, width}) && has_sizes(attention, {pool, width}) &&
          has_sizes(prompts, {pool, length, width}),
      "puma::match_prompts: the sizes do not fit each other");
  const int32_t type = type_number(query);
  STD_TORCH_CHECK(
      (type == type_number(ScalarType::Float) || type == type_number(ScalarType::Double)) && type_number(keys) == type &&
          type_number(attention) == type && type_number(prompts) == type,
      "puma::match_prompts: all tensors must be float32, or all float64");
  STD_TORCH_CHECK(
      on_device_of(query, {&keys, &attention, &prompts}), "puma::match_prompts: all tensors must be on one device");
}

inline void check_prompts_backward(
    const std::optional<Tensor>& grad_prompt, const std::optional<Tensor>& grad_weights, const Tensor& query,
    const Tensor& keys, const Tensor& attention, const Tensor& prompts, const Tensor& weights,
    const Tensor& inverse_norm) {
  check_prompts(query, keys, attention, prompts);
  const int64_t samples = query.size(0), pool = keys.size(0);
  const auto fits = [&](const Tensor& tensor, std::initializer_list<int64_t> sizes) {
    return has_sizes(tensor, sizes) && type_number(tensor) == type_number(query) && on_device_of(query, {&tensor});
  };
  STD_TORCH_CHECK(
      fits(weights, {samples, pool}) && fits(inverse_norm, {samples, pool}) &&
          (!grad_weights.has_value() || fits(*grad_weights, {samples, pool})) &&
          (!grad_prompt.has_value() || fits(*grad_prompt, {samples, prompts.size(1), prompts.size(2)})),
      "puma::match_prompts: gradients, weights and inverse_norm must fit what the forward returned");
}

}  // namespace puma
