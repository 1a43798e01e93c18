// puma::match_prompts and its backward on CUDA. Schemas and semantics: csrc/registration.cpp.
#include <limits>
#include <tuple>

#include "../arguments.h"
#include "torch_helpers.h"

namespace puma {
namespace {

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// float or double; Python casts the half types up.
template <typename Function>
void with_real_type(ScalarType type, const Function& function) {
  if (type == ScalarType::Double) {
    function(Type<double>{});
  } else {
    STD_TORCH_CHECK(type == ScalarType::Float, "match_prompts takes float32 or float64");
    function(Type<float>{});
  }
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& query_in, const Tensor& keys_in, const Tensor& attention_in,
                                           const Tensor& prompts_in) {
  check_prompts(query_in, keys_in, attention_in, prompts_in);
  const OnDevice device(query_in);
  const CudaLauncher launcher = device.launcher();
  const Tensor query = as_contiguous(query_in), keys = as_contiguous(keys_in), attention = as_contiguous(attention_in);
  const Tensor prompts = as_contiguous(prompts_in);
  const int64_t batch = query.size(0), channels = query.size(1), pool = prompts.size(0), length = prompts.size(1);
  const ScalarType type = query.scalar_type();
  Tensor prompt = new_tensor(query, {batch, length, channels}, type);
  Tensor weights = new_tensor(query, {batch, pool}, type);
  Tensor inverse_norm = new_tensor(query, {batch, pool}, type);
  if (batch == 0) return {prompt, weights, inverse_norm};
  with_real_type(type, [&](auto t) {
    using T = typename decltype(t)::type;
    PromptArguments<T> a{};
    a.batch = batch;
    a.pool = pool;
    a.channels = channels;
    a.prompt_size = length * channels;
    a.tiny = std::numeric_limits<T>::min();
    a.query = data<T>(query);
    a.keys = data<T>(keys);
    a.attention = data<T>(attention);
    a.prompts = data<T>(prompts);
    a.weights = data<T>(weights);
    a.inverse_norm = data<T>(inverse_norm);
    a.prompt = data<T>(prompt);
    prompts_forward(launcher, a);
  });
  return {prompt, weights, inverse_norm};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const std::optional<Tensor>& grad_prompt_in, const std::optional<Tensor>& grad_weights_in, const Tensor& query_in,
    const Tensor& keys_in, const Tensor& attention_in, const Tensor& prompts_in, const Tensor& weights_in,
    const Tensor& inverse_norm_in, bool need_query) {
  check_prompts_backward(
      grad_prompt_in, grad_weights_in, query_in, keys_in, attention_in, prompts_in, weights_in, inverse_norm_in);
  const OnDevice device(query_in);
  const CudaLauncher launcher = device.launcher();
  const auto dense_or_none = [](const std::optional<Tensor>& t) -> std::optional<Tensor> {
    if (!t.has_value()) return std::nullopt;
    return as_contiguous(*t);
  };
  const std::optional<Tensor> grad_prompt = dense_or_none(grad_prompt_in);
  const std::optional<Tensor> grad_weights = dense_or_none(grad_weights_in);
  const Tensor query = as_contiguous(query_in), keys = as_contiguous(keys_in), attention = as_contiguous(attention_in);
  const Tensor prompts = as_contiguous(prompts_in), weights = as_contiguous(weights_in);
  const Tensor inverse_norm = as_contiguous(inverse_norm_in);
  const int64_t batch = query.size(0), channels = query.size(1), pool = prompts.size(0), length = prompts.size(1);
  const ScalarType type = query.scalar_type();
  Tensor grad_query = need_query ? new_tensor(query, {batch, channels}, type) : new_tensor(query, {0}, type);
  Tensor grad_keys = new_tensor(query, {pool, channels}, type);
  Tensor grad_attention = new_tensor(query, {pool, channels}, type);
  Tensor grad_prompts = new_tensor(query, {pool, length, channels}, type);
  const Tensor workspace = new_tensor(query, {2 * pool * channels + pool + kPromptSlices * batch * pool}, type);
  with_real_type(type, [&](auto t) {
    using T = typename decltype(t)::type;
    PromptGradientArguments<T> a{};
    a.batch = batch;
    a.pool = pool;
    a.channels = channels;
    a.prompt_size = length * channels;
    a.tiny = std::numeric_limits<T>::min();
    a.grad_prompt = grad_prompt.has_value() ? data<T>(*grad_prompt) : nullptr;
    a.grad_weights = grad_weights.has_value() ? data<T>(*grad_weights) : nullptr;
    a.query = data<T>(query);
    a.keys = data<T>(keys);
    a.attention = data<T>(attention);
    a.prompts = data<T>(prompts);
    a.weights = data<T>(weights);
    a.inverse_norm = data<T>(inverse_norm);
    a.focus = data<T>(workspace);
    a.focused_keys = a.focus + pool * channels;
    a.key_norm = a.focused_keys + pool * channels;
    a.shares = a.key_norm + pool;
    a.grad_query = need_query ? data<T>(grad_query) : nullptr;
    a.grad_keys = data<T>(grad_keys);
    a.grad_attention = data<T>(grad_attention);
    a.grad_prompts = data<T>(grad_prompts);
    prompts_backward(launcher, a);
  });
  return {grad_query, grad_keys, grad_attention, grad_prompts};
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CUDA, m) {
  m.impl("match_prompts", TORCH_BOX(&puma::forward));
  m.impl("match_prompts_backward", TORCH_BOX(&puma::backward));
}
