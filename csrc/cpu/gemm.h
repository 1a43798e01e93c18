// Matrix products on raw memory through torch's own library, safe to call from the threads of parallel_for: the views
// made here never require a gradient, whatever the tensors that own the memory do.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>
#include <initializer_list>

#include "../tensors.h"
#include "vector.h"

namespace puma {

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

template <class T>
Tensor borrowed(const T* data, const std::array<int64_t, 2>& sizes, const std::array<int64_t, 2>& strides) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(const_cast<T*>(data), sizes, strides, cpu, scalar_type<T>());
}

// A borrowed (rows, columns) view of row-major memory.
template <class T>
Tensor matrix(const T* data, int64_t rows, int64_t columns) {
  return borrowed(data, {rows, columns}, {columns, 1});
}

// A borrowed (columns, rows) view of row-major memory of shape (rows, columns): its transpose.
template <class T>
Tensor transposed(const T* data, int64_t rows, int64_t columns) {
  return borrowed(data, {columns, rows}, {1, columns});
}

// out = a @ b. The C shim calls torch's CPU kernel itself: no look-up by name, no autograd, no autocast on the way.
inline void mm(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// The same of contiguous memory: a (rows, depth), b (depth, columns). Of a few elements by itself: next to these a view of
// torch's would take most of the time.
template <class T>
void mm(T* out, const T* a, const T* b, int64_t rows, int64_t depth, int64_t columns) {
  constexpr int64_t kFewProducts = 512;
  if constexpr (sizeof(T) >= sizeof(float)) {
    if (rows * depth * columns <= kFewProducts) {
      for (int64_t i = 0; i < rows * columns; ++i) {
        T sum = 0;
        for (int64_t k = 0; k < depth; ++k) sum += a[i / columns * depth + k] * b[k * columns + i % columns];
        out[i] = sum;
      }
      return;
    }
  }
  mm(matrix(out, rows, columns), matrix(a, rows, depth), matrix(b, depth, columns));
}

// out += a @ b.
inline void mm_accumulate(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(sizes, dtype, aoti_torch_device_type_cpu(), 0);
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
