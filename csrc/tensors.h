// Tensors made without a look-up of torch's operators by name, which is a stable library's usual way to them, and on
// the CPU without the dispatcher at all: next to a small kernel that costs.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <initializer_list>

namespace puma {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Types as torch's own numbers: next to a call with little to do, translating a tensor's into a ScalarType costs.
inline int32_t type_number(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

inline int32_t type_number(const Tensor& tensor) {
  int32_t number = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &number));
  return number;
}

inline bool has_type(const Tensor& tensor, ScalarType type) { return type_number(tensor) == type_number(type); }

// A new contiguous tensor without values, of at most five dimensions.
inline Tensor empty(
    const int64_t* sizes, size_t dimensions, ScalarType dtype, int32_t device_type, int32_t device_index) {
  std::array<int64_t, 5> strides;
  STD_TORCH_CHECK(dimensions <= strides.size(), "a tensor of at most five dimensions was expected");
  int64_t stride = 1;
  for (size_t d = dimensions; d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(dimensions), sizes, strides.data(),
      type_number(dtype), device_type, device_index, &handle));
  return Tensor(handle);
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, int32_t device_type, int32_t device_index) {
  return empty(sizes.begin(), sizes.size(), dtype, device_type, device_index);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace puma
