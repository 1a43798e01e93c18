// Where kernels are launched: a device and a stream. The launch itself is in launch.cuh, for nvcc only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "problem.h"

namespace puma {

class CudaLauncher {
 public:
  CudaLauncher(int device, cudaStream_t stream) : device_(device), stream_(stream) {}

  DeviceLimits limits() const {
    return {attribute(cudaDevAttrMultiProcessorCount), shared_bytes_per_block(),
            attribute(cudaDevAttrComputeCapabilityMajor) == 9};
  }

  template <typename Kernel>
  void run(int64_t blocks, int shared_bytes, const typename Kernel::Arguments& arguments) const;

 private:
  template <typename Kernel>
  bool set_up() const;  // see launch.cuh; whether the kernel waits for the one in front by itself
  static void check(cudaError_t error);  // throws
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device_));
    return value;
  }
  int shared_bytes_per_block() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

  int device_;
  cudaStream_t stream_;
};

}  // namespace puma
