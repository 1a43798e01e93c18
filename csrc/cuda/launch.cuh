// Launches of kernels.cuh on the device, on torch's current stream.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "launcher.h"

namespace puma {

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
entry(const __grid_constant__ typename Kernel::Arguments arguments) {
  Kernel::body(arguments);
}

// Once per kernel and device: makes room for the shared memory and looks whether the code that runs there waits for the
// kernel in front (dev::wait_for_previous_kernel): code for 8.0, which the newest devices run too, does not.
template <typename Kernel>
bool CudaLauncher::set_up() const {
  enum : int { kUnknown, kDoesNotWait, kWaits };
  static std::array<std::atomic<int>, 64> known{};
  const bool remembered = device_ < static_cast<int>(known.size());
  int state = remembered ? known[device_].load() : kUnknown;
  if (state == kUnknown) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, entry<Kernel>));
    check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_per_block()));
    state = Kernel::kDependent && attributes.ptxVersion >= 90 ? kWaits : kDoesNotWait;
    if (remembered) known[device_].store(state);
  }
  return state == kWaits;
}

template <typename Kernel>
void CudaLauncher::run(int64_t blocks, int shared_bytes, const typename Kernel::Arguments& arguments) const {
  if (blocks == 0) return;
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = Kernel::kThreads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream_;
  config.attrs = &dependent;
  config.numAttrs = set_up<Kernel>() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, entry<Kernel>, arguments));
}

}  // namespace puma
