// puma::stochastic_adapter and its backward on CUDA. Schemas and semantics: csrc/registration.cpp.
#include <tuple>

#include "../arguments.h"
#include "../schemas.h"
#include "general_path.h"
#include "sizes.h"
#include "torch_helpers.h"

namespace puma {
namespace {

AdapterSizes sizes_of(const Tensor& tokens, const Tensor& down) {
  return {tokens.size(0), tokens.size(1), tokens.size(2), down.size(1)};
}

Matrix matrix_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.scalar_type() == ScalarType::Float};
}

Tensor converted(const Tensor& t, ScalarType type) { return t.scalar_type() == type ? t : torch::stable::to(t, type); }

std::optional<Tensor> dense_gate(const std::optional<Tensor>& gate) {
  if (!gate.has_value()) return std::nullopt;
  return as_contiguous(*gate);
}

const void* data_or_null(const std::optional<Tensor>& t) { return t.has_value() ? t->data_ptr() : nullptr; }

// What general_path.h needs of torch.
class TorchBackend {
 public:
  using Array = Tensor;
  TorchBackend(const CudaLauncher& launcher, const Tensor& like) : launcher_(launcher), like_(like) {}

  const CudaLauncher& launcher() const { return launcher_; }
  template <typename T>
  Tensor empty(int64_t rows, int64_t columns) const {
    return new_tensor(like_, {rows, columns}, like_.scalar_type());
  }
  int32_t* integers(int64_t count) {
    integers_ = new_tensor(like_, {count}, ScalarType::Int);
    return static_cast<int32_t*>(integers_.data_ptr());
  }
  static Tensor product(const Tensor& a, const Tensor& b) {
    std::array<StableIValue, 2> stack{torch::stable::detail::from(a), torch::stable::detail::from(b)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "", stack.data(), TORCH_ABI_VERSION));
    return as_contiguous(torch::stable::detail::to<Tensor>(stack[0]));
  }
  static Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }
  static void* data(const Tensor& t) { return t.data_ptr(); }

 private:
  CudaLauncher launcher_;
  Tensor like_;
  Tensor integers_;
};

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

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& residual_in, const Tensor& tokens_in, const Tensor& down,
                                           const Tensor& up, const std::optional<Tensor>& gate_in,
                                           const std::optional<Tensor>& branch_in, double scale, bool save_hidden) {
  check_adapter(residual_in, tokens_in, down, up, gate_in, branch_in);
  const OnDevice device(tokens_in);
  const CudaLauncher launcher = device.launcher();
  const Tensor residual = dense(residual_in), tokens = dense(tokens_in);
  const std::optional<Tensor> gate = dense_gate(gate_in);
  std::optional<Tensor> branch;
  if (branch_in.has_value()) branch = dense(*branch_in);
  const AdapterSizes s = sizes_of(tokens, down);
  const int64_t rows = s.samples * s.tokens_per_sample;
  Tensor out = new_tensor(residual, {s.samples, s.tokens_per_sample, s.channels}, residual.scalar_type());
  Tensor hidden = new_tensor(tokens, {save_hidden ? rows : 0, s.width}, tokens.scalar_type());
  const int64_t element_size = static_cast<int64_t>(tokens.element_size());
  Tensor prepared = new_tensor(tokens, {save_hidden ? prepared_bytes(s, element_size) : 0}, ScalarType::Byte);
  const bool fused = rows > 0 && fused_kernels_apply(s, element_size);
  if (!fused) torch::stable::zero_(prepared);
  if (rows == 0) return {out, hidden, prepared};

  const ForwardProblem problem{s,
                               residual.data_ptr(),
                               tokens.data_ptr(),
                               matrix_of(down),
                               matrix_of(up),
                               data_or_null(gate),
                               scale,
                               out.data_ptr(),
                               save_hidden ? hidden.data_ptr() : nullptr,
                               save_hidden && fused ? prepared.data_ptr() : nullptr,
                               data_or_null(branch),
                               branch.has_value() && branch->scalar_type() != residual.scalar_type()};
  with_types(tokens.scalar_type(), residual.scalar_type(), [&](auto t, auto r) {
    using T = typename decltype(t)::type;
    using R = typename decltype(r)::type;
    if constexpr (!same_type<T, double>) {
      if (fused) {
        const Tensor workspace = new_workspace(tokens, fused_forward<T, R>(launcher, problem, nullptr));
        fused_forward<T, R>(launcher, problem, static_cast<char*>(workspace.data_ptr()));
        return;
      }
    }
    TorchBackend backend(launcher, tokens);
    const ScalarType type = tokens.scalar_type();
    const Tensor activation = general_forward<T, R>(backend, problem, converted(down, type), converted(up, type));
    if (save_hidden) hidden = activation;
  });
  return {out, hidden, prepared};
}

Tensor inference(const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
                 const std::optional<Tensor>& gate, const std::optional<Tensor>& branch, double scale) {
  return std::get<0>(forward(residual, tokens, down, up, gate, branch, scale, false));
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_in, const Tensor& tokens_in, const Tensor& down,
                                            const Tensor& up, const std::optional<Tensor>& gate_in,
                                            const Tensor& hidden_in, const Tensor& prepared_in, double scale,
                                            bool need_tokens, bool need_weights) {
  check_adapter_backward(grad_in, tokens_in, down, up, gate_in, hidden_in, prepared_in);
  const OnDevice device(tokens_in);
  const CudaLauncher launcher = device.launcher();
  const Tensor grad = dense(grad_in), tokens = dense(tokens_in), hidden = dense(hidden_in);
  const Tensor prepared = dense(prepared_in);
  const std::optional<Tensor> gate = dense_gate(gate_in);
  const AdapterSizes s = sizes_of(tokens, down);
  const ScalarType type = tokens.scalar_type();
  Tensor grad_tokens = need_tokens ? new_tensor(tokens, {s.samples, s.tokens_per_sample, s.channels}, type)
                                   : new_tensor(tokens, {0}, type);
  const ScalarType weights_type = down.scalar_type();
  const auto new_gradient = [&](int64_t rows, int64_t columns) {
    return need_weights ? new_tensor(tokens, {rows, columns}, weights_type) : new_tensor(tokens, {0}, weights_type);
  };
  Tensor grad_down = new_gradient(s.channels, s.width), grad_up = new_gradient(s.width, s.channels);
  if (!need_tokens && !need_weights) return {grad_tokens, grad_down, grad_up};
  if (s.samples * s.tokens_per_sample == 0) {
    if (need_weights) {
      torch::stable::zero_(grad_down);
      torch::stable::zero_(grad_up);
    }
    return {grad_tokens, grad_down, grad_up};
  }

  const int64_t element_size = static_cast<int64_t>(tokens.element_size());
  const bool fused = fused_kernels_apply(s, element_size);
  STD_TORCH_CHECK(prepared.numel() == prepared_bytes(s, element_size),
                  "prepared must be what the forward returned with save_hidden for the same sizes and dtypes");
  const BackwardProblem problem{s,
                                grad.data_ptr(),
                                tokens.data_ptr(),
                                matrix_of(down),
                                matrix_of(up),
                                data_or_null(gate),
                                hidden.data_ptr(),
                                prepared.data_ptr(),
                                scale,
                                need_tokens ? grad_tokens.data_ptr() : nullptr,
                                need_weights ? grad_down.data_ptr() : nullptr,
                                need_weights ? grad_up.data_ptr() : nullptr};
  with_types(type, grad.scalar_type(), [&](auto t, auto r) {
    using T = typename decltype(t)::type;
    using R = typename decltype(r)::type;
    if constexpr (!same_type<T, double>) {
      if (fused) {
        const Tensor workspace = new_workspace(tokens, fused_backward<T, R>(launcher, problem, nullptr));
        fused_backward<T, R>(launcher, problem, static_cast<char*>(workspace.data_ptr()));
        return;
      }
    }
    TorchBackend backend(launcher, tokens);
    const auto gradients =
        general_backward<T, R>(backend, problem, converted(down, type), converted(up, type), need_weights);
    if (need_weights) {
      grad_down = converted(gradients.down, weights_type);
      grad_up = converted(gradients.up, weights_type);
    }
  });
  return {grad_tokens, grad_down, grad_up};
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CUDA, m) {
  m.impl("stochastic_adapter", TORCH_BOX(&puma::forward));
  m.impl("stochastic_adapter_inference", TORCH_BOX(&puma::inference));
  m.impl("stochastic_adapter_backward", TORCH_BOX(&puma::backward));
}

// Asked for by puma_plugin/ops/loader.py.
extern "C" __attribute__((visibility("default"))) int puma_cuda_schemas() { return puma::kSchemas; }
