#include "launcher.h"

#include <torch/csrc/stable/macros.h>

namespace puma {

void CudaLauncher::check(cudaError_t error) { STD_CUDA_CHECK(error); }

}  // namespace puma
