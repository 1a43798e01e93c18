// Launches of kernels.cuh on the device, on torch's current stream.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "launcher.h"

namespace puma {

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
entry(const __grid_constant__ typename Kernel::Arguments arguments) {
  Kernel::body(arguments);
}

template <typename Kernel>
void CudaLauncher::run(int64_t blocks, int shared_bytes, const typename Kernel::Arguments& arguments) const {
  if (blocks == 0) return;
  if (shared_bytes > 48 * 1024) {
    // Blocks get more than 48 KB only on request, once per kernel and device.
    static std::atomic<uint64_t> raised{0};
    const uint64_t bit = uint64_t{1} << (device_ % 64);
    if (device_ >= 64 || (raised.load() & bit) == 0) {
      check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_per_block()));
      raised.fetch_or(bit);
    }
  }
  cudaLaunchAttribute dependent{};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = Kernel::kThreads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream_;
  config.attrs = &dependent;
  config.numAttrs = Kernel::kDependent && attribute(cudaDevAttrComputeCapabilityMajor) >= 9 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, entry<Kernel>, arguments));
}

}  // namespace puma
