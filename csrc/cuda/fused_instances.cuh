// Definitions of fused_forward and fused_backward; each fused_*.cu instantiates them for its types, so that several
// compilers can work at once.
#pragma once

#include "functions.h"
#include "fused.h"
#include "launch.cuh"

namespace puma {

template <typename T, typename R>
int64_t fused_forward(const CudaLauncher& launcher, const ForwardProblem& problem, char* workspace) {
  return with_fused_adapter<T, R>(problem.sizes.width,
                                  [&](auto adapter) { return adapter.forward(launcher, problem, workspace); });
}

template <typename T, typename R>
int64_t fused_backward(const CudaLauncher& launcher, const BackwardProblem& problem, char* workspace) {
  return with_fused_adapter<T, R>(problem.sizes.width,
                                  [&](auto adapter) { return adapter.backward(launcher, problem, workspace); });
}

#define PUMA_INSTANTIATE_FUSED(T, R)                                                            \
  template int64_t fused_forward<T, R>(const CudaLauncher&, const ForwardProblem&, char*);      \
  template int64_t fused_backward<T, R>(const CudaLauncher&, const BackwardProblem&, char*)

}  // namespace puma
