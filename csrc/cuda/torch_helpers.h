// Between torch's stable tensors and the kernels' pointers.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <initializer_list>
#include <optional>

#include "../tensors.h"
#include "functions.h"

namespace puma {

// The kernels' name of a torch type.
template <typename T>
struct Type {
  using type = T;
};

// Calls function(Type<T>{}) for a floating-point type.
template <typename Function>
auto with_type(ScalarType type, const Function& function) {
  switch (type) {
    case ScalarType::Double:
      return function(Type<double>{});
    case ScalarType::Float:
      return function(Type<float>{});
    case ScalarType::BFloat16:
      return function(Type<bf16>{});
    case ScalarType::Half:
      return function(Type<f16>{});
    default:
      STD_TORCH_CHECK(false, "the operators take float64, float32, bfloat16 or float16");
  }
}

// Makes the tensor's device current while it lives, and gives the launcher for its current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}
  CudaLauncher launcher() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return {index_, static_cast<cudaStream_t>(stream)};
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// Contiguous, and aligned to the 16 bytes that the kernels load at once (a view into another tensor may not be).
inline Tensor dense(const Tensor& tensor) {
  Tensor result = as_contiguous(tensor);
  if (reinterpret_cast<uintptr_t>(result.data_ptr()) % 16 != 0) result = torch::stable::clone(result);
  return result;
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return empty(sizes, type, aoti_torch_device_type_cuda(), like.get_device_index());
}

inline Tensor new_workspace(const Tensor& like, int64_t bytes) { return new_tensor(like, {bytes}, ScalarType::Byte); }

}  // namespace puma
