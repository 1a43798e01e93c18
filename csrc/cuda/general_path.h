// The adapter for shapes and types the fused kernels do not take: compaction, plain matrix products, expansion. As many
// rows are multiplied as there are tokens, since only the device knows how many are kept; those behind are zeros.
//
// Backend provides the products and the memory; torch's is in stochastic_adapter.cpp, the tests have one on the host:
//   launcher()                                         where kernels run
//   using Array; Array empty<T>(rows, columns)         row-major
//   int32_t* integers(count)                           as long-lived as the backend
//   Array product(const Array&, const Array&), Array transposed(const Array&), void* data(const Array&)
#pragma once

#include "general_steps.h"

namespace puma {

template <typename Backend>
RowsArguments list_rows(Backend& backend, const AdapterSizes& s, const void* gate, bool gate_is_double, double scale) {
  constexpr int64_t kListIntegers = sizeof(SampleList) / sizeof(int32_t);
  int32_t* order = backend.integers(s.samples + kListIntegers);
  auto* list = reinterpret_cast<SampleList*>(order + s.samples);
  list_kept_samples(backend.launcher(), gate, gate_is_double, s.samples, list, order);
  return {gate, list, order, s.samples, s.tokens_per_sample, s.channels, scale};
}

// Returns the activation: rows of kept samples, zeros behind. Of the problem's matrices `down` and `up` are used.
template <typename T, typename R, typename Backend>
typename Backend::Array general_forward(Backend& backend, const ForwardProblem& p, const typename Backend::Array& down,
                                        const typename Backend::Array& up) {
  const auto& s = p.sizes;
  const RowsArguments rows = list_rows(backend, s, p.gate, same_type<T, double>, p.scale);
  auto compact = backend.template empty<T>(s.samples * s.tokens_per_sample, s.channels);
  gather_kept_rows<T, T>(backend.launcher(), rows, p.tokens, backend.data(compact), false);
  auto hidden = backend.product(compact, down);
  rectify_values<T>(backend.launcher(), s.samples * s.tokens_per_sample * s.width, backend.data(hidden));
  const auto product = backend.product(hidden, up);
  scatter_add_kept_rows<T, R>(backend.launcher(), rows, p, backend.data(product));
  return hidden;
}

template <typename Array>
struct GeneralGradients {
  Array down;
  Array up;
};

// Fills p.grad_tokens if given; computes the weights' gradients if need_weights.
template <typename T, typename R, typename Backend>
GeneralGradients<typename Backend::Array> general_backward(Backend& backend, const BackwardProblem& p,
                                                           const typename Backend::Array& down,
                                                           const typename Backend::Array& up, bool need_weights) {
  const auto& s = p.sizes;
  const int64_t row_count = s.samples * s.tokens_per_sample;
  const RowsArguments rows = list_rows(backend, s, p.gate, same_type<T, double>, p.scale);
  auto scaled = backend.template empty<T>(row_count, s.channels);
  gather_kept_rows<R, T>(backend.launcher(), rows, p.grad, backend.data(scaled), true);
  auto delta = backend.product(scaled, backend.transposed(up));
  auto hidden = backend.template empty<T>(row_count, s.width);
  mask_gradient<T>(backend.launcher(), rows, s.width, p.hidden, backend.data(delta), backend.data(hidden));
  if (p.grad_tokens != nullptr) {
    const auto compact = backend.product(delta, backend.transposed(down));
    scatter_kept_rows<T>(backend.launcher(), rows, backend.data(compact), p.grad_tokens);
  }
  if (!need_weights) return {};
  auto tokens = backend.template empty<T>(row_count, s.channels);
  gather_kept_rows<T, T>(backend.launcher(), rows, p.tokens, backend.data(tokens), false);
  return {backend.product(backend.transposed(tokens), delta), backend.product(backend.transposed(hidden), scaled)};
}

}  // namespace puma
