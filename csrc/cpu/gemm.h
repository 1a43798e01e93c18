// Matrix products on raw memory through torch's own library, safe to call from the threads of parallel_for: the views made
// here never require a gradient, whatever the tensors that own the memory do.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

#include "vector.h"

namespace puma {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
constexpr ScalarType scalar_type();
template <>
constexpr ScalarType scalar_type<float>() {
  return ScalarType::Float;
}
template <>
constexpr ScalarType scalar_type<double>() {
  return ScalarType::Double;
}
template <>
constexpr ScalarType scalar_type<bf16>() {
  return ScalarType::BFloat16;
}
template <>
constexpr ScalarType scalar_type<fp16>() {
  return ScalarType::Half;
}

// A borrowed (rows, columns) view of row-major memory.
template <class T>
Tensor matrix(const T* data, int64_t rows, int64_t columns) {
  const std::array<int64_t, 2> sizes{rows, columns}, strides{columns, 1};
  return torch::stable::from_blob(
      const_cast<T*>(data), sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type<T>());
}

// A borrowed (columns, rows) view of row-major memory of shape (rows, columns): its transpose.
template <class T>
Tensor transposed(const T* data, int64_t rows, int64_t columns) {
  const std::array<int64_t, 2> sizes{columns, rows}, strides{1, columns};
  return torch::stable::from_blob(
      const_cast<T*>(data), sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type<T>());
}

// out = a @ b.
inline void mm(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{
      torch::stable::detail::from(a), torch::stable::detail::from(b), torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the returned reference
}

// out += a @ b. (Through the C shim: the dispatcher's stable calls take no Scalar.)
inline void mm_accumulate(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace puma
