// puma::stochastic_adapter and its backward on CUDA. Schemas and semantics: csrc/registration.cpp.
#include <tuple>

#include "sizes.h"
#include "torch_helpers.h"

namespace puma {
namespace {

AdapterSizes sizes_of(const Tensor& tokens, const Tensor& down) {
  return {tokens.size(0), tokens.size(1), tokens.size(2), down.size(1)};
}

Matrix matrix_of(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }

Tensor matrix_product(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

std::optional<Tensor> dense_gate(const std::optional<Tensor>& gate) {
  if (!gate.has_value()) return std::nullopt;
  return torch::stable::contiguous(*gate);
}

const void* data_or_null(const std::optional<Tensor>& t) { return t.has_value() ? t->data_ptr() : nullptr; }

// Which samples are kept, on the device, and the rows of width `channels` they hold.
struct KeptRows {
  Tensor order;  // int32: order of the samples, then the number of kept ones
  RowsArguments arguments;
};

KeptRows list_kept(const CudaLauncher& launcher, const Tensor& tokens, const std::optional<Tensor>& gate, double scale) {
  const int64_t samples = tokens.size(0);
  KeptRows rows{new_tensor(tokens, {samples + 1}, ScalarType::Int), {}};
  auto* order = static_cast<int32_t*>(rows.order.data_ptr());
  const bool gate_is_double = gate.has_value() && gate->scalar_type() == ScalarType::Double;
  list_kept_samples(launcher, data_or_null(gate), gate_is_double, samples, order + samples, order);
  rows.arguments = {data_or_null(gate), order + samples, order, samples, tokens.size(1), tokens.size(2), scale};
  return rows;
}

// A function of types (T, R): the tokens' and the residual's.
template <typename Function>
void with_types(ScalarType tokens, ScalarType residual, const Function& function) {
  with_type(tokens, [&](auto t) {
    using T = typename decltype(t)::type;
    if (tokens == residual) {
      function(t, t);
    } else if constexpr (sizeof(T) == 2) {
      function(t, Type<float>{});
    } else {
      STD_TORCH_CHECK(false, "residual must have the dtype of tokens, or float32 with half-precision tokens");
    }
  });
}

void general_forward(const CudaLauncher& launcher, const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
                     const std::optional<Tensor>& gate, double scale, Tensor& out, Tensor* saved_hidden) {
  const AdapterSizes s = sizes_of(tokens, down);
  const KeptRows rows = list_kept(launcher, tokens, gate, scale);
  with_types(tokens.scalar_type(), residual.scalar_type(), [&](auto t, auto r) {
    using T = typename decltype(t)::type;
    using R = typename decltype(r)::type;
    Tensor compact = new_tensor(tokens, {s.samples * s.tokens_per_sample, s.channels}, tokens.scalar_type());
    gather_kept_rows<T, T>(launcher, rows.arguments, tokens.data_ptr(), compact.data_ptr(), false);
    Tensor hidden = matrix_product(compact, down);
    rectify_values<T>(launcher, hidden.numel(), hidden.data_ptr());
    const Tensor branch = matrix_product(hidden, up);
    scatter_add_kept_rows<T, R>(launcher, rows.arguments, residual.data_ptr(), branch.data_ptr(), out.data_ptr());
    if (saved_hidden != nullptr) *saved_hidden = hidden;
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& residual_in, const Tensor& tokens_in, const Tensor& down, const Tensor& up,
                                   const std::optional<Tensor>& gate_in, double scale, bool save_hidden) {
  const OnDevice device(tokens_in);
  const CudaLauncher launcher = device.launcher();
  const Tensor residual = dense(residual_in), tokens = dense(tokens_in);
  const std::optional<Tensor> gate = dense_gate(gate_in);
  const AdapterSizes s = sizes_of(tokens, down);
  const int64_t rows = s.samples * s.tokens_per_sample;
  Tensor out = new_tensor(residual, {s.samples, s.tokens_per_sample, s.channels}, residual.scalar_type());
  Tensor hidden = new_tensor(tokens, {save_hidden ? rows : 0, s.width}, tokens.scalar_type());
  if (rows == 0) return {out, hidden};

  if (!fused_kernels_apply(s, static_cast<int64_t>(tokens.element_size()))) {
    general_forward(launcher, residual, tokens, down, up, gate, scale, out, save_hidden ? &hidden : nullptr);
    return {out, hidden};
  }
  const ForwardProblem problem{s,
                               residual.data_ptr(),
                               tokens.data_ptr(),
                               matrix_of(down),
                               matrix_of(up),
                               static_cast<const float*>(data_or_null(gate)),
                               scale,
                               out.data_ptr(),
                               save_hidden ? hidden.data_ptr() : nullptr};
  with_types(tokens.scalar_type(), residual.scalar_type(), [&](auto t, auto r) {
    using T = typename decltype(t)::type;
    using R = typename decltype(r)::type;
    if constexpr (!same_type<T, double>) {
      const Tensor workspace = new_workspace(tokens, fused_forward<T, R>(launcher, problem, nullptr));
      fused_forward<T, R>(launcher, problem, static_cast<char*>(workspace.data_ptr()));
    }
  });
  return {out, hidden};
}

void general_backward(const CudaLauncher& launcher, const Tensor& grad, const Tensor& tokens, const Tensor& down, const Tensor& up,
                      const std::optional<Tensor>& gate, const Tensor& hidden, double scale, Tensor* grad_tokens, Tensor* grad_down,
                      Tensor* grad_up) {
  const AdapterSizes s = sizes_of(tokens, down);
  const int64_t row_count = s.samples * s.tokens_per_sample;
  const KeptRows rows = list_kept(launcher, tokens, gate, scale);
  with_types(tokens.scalar_type(), grad.scalar_type(), [&](auto t, auto r) {
    using T = typename decltype(t)::type;
    using R = typename decltype(r)::type;
    Tensor scaled = new_tensor(tokens, {row_count, s.channels}, tokens.scalar_type());
    gather_kept_rows<R, T>(launcher, rows.arguments, grad.data_ptr(), scaled.data_ptr(), true);
    Tensor delta = matrix_product(scaled, transposed(up));
    Tensor clean = torch::stable::empty_like(hidden);
    mask_gradient<T>(launcher, rows.arguments, s.width, hidden.data_ptr(), delta.data_ptr(), clean.data_ptr());
    if (grad_tokens != nullptr) {
      const Tensor compact = matrix_product(delta, transposed(down));
      scatter_kept_rows<T>(launcher, rows.arguments, compact.data_ptr(), grad_tokens->data_ptr());
    }
    if (grad_down != nullptr) {
      Tensor compact = new_tensor(tokens, {row_count, s.channels}, tokens.scalar_type());
      gather_kept_rows<T, T>(launcher, rows.arguments, tokens.data_ptr(), compact.data_ptr(), false);
      *grad_down = torch::stable::contiguous(matrix_product(transposed(compact), delta));
      *grad_up = torch::stable::contiguous(matrix_product(transposed(clean), scaled));
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_in, const Tensor& tokens_in, const Tensor& down, const Tensor& up,
                                            const std::optional<Tensor>& gate_in, const Tensor& hidden_in, double scale,
                                            bool need_tokens, bool need_weights) {
  const OnDevice device(tokens_in);
  const CudaLauncher launcher = device.launcher();
  const Tensor grad = dense(grad_in), tokens = dense(tokens_in), hidden = dense(hidden_in);
  const std::optional<Tensor> gate = dense_gate(gate_in);
  const AdapterSizes s = sizes_of(tokens, down);
  const ScalarType type = tokens.scalar_type();
  const auto empty = [&] { return new_tensor(tokens, {0}, type); };
  Tensor grad_tokens = need_tokens ? new_tensor(tokens, {s.samples, s.tokens_per_sample, s.channels}, type) : empty();
  Tensor grad_down = need_weights ? new_tensor(tokens, {s.channels, s.width}, type) : empty();
  Tensor grad_up = need_weights ? new_tensor(tokens, {s.width, s.channels}, type) : empty();
  if (!need_tokens && !need_weights) return {grad_tokens, grad_down, grad_up};
  if (s.samples * s.tokens_per_sample == 0) {
    if (need_weights) {
      torch::stable::zero_(grad_down);
      torch::stable::zero_(grad_up);
    }
    return {grad_tokens, grad_down, grad_up};
  }

  if (!fused_kernels_apply(s, static_cast<int64_t>(tokens.element_size()))) {
    general_backward(launcher, grad, tokens, down, up, gate, hidden, scale, need_tokens ? &grad_tokens : nullptr,
                     need_weights ? &grad_down : nullptr, need_weights ? &grad_up : nullptr);
    return {grad_tokens, grad_down, grad_up};
  }
  const BackwardProblem problem{s,
                                grad.data_ptr(),
                                tokens.data_ptr(),
                                matrix_of(down),
                                matrix_of(up),
                                static_cast<const float*>(data_or_null(gate)),
                                hidden.data_ptr(),
                                scale,
                                need_tokens ? grad_tokens.data_ptr() : nullptr,
                                need_weights ? grad_down.data_ptr() : nullptr,
                                need_weights ? grad_up.data_ptr() : nullptr};
  with_types(type, grad.scalar_type(), [&](auto t, auto r) {
    using T = typename decltype(t)::type;
    using R = typename decltype(r)::type;
    if constexpr (!same_type<T, double>) {
      const Tensor workspace = new_workspace(tokens, fused_backward<T, R>(launcher, problem, nullptr));
      fused_backward<T, R>(launcher, problem, static_cast<char*>(workspace.data_ptr()));
    }
  });
  return {grad_tokens, grad_down, grad_up};
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CUDA, m) {
  m.impl("stochastic_adapter", TORCH_BOX(&puma::forward));
  m.impl("stochastic_adapter_backward", TORCH_BOX(&puma::backward));
}
