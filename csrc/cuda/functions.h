// What the .cu files offer to the operators. Everything is enqueued on the launcher's stream; nothing waits.
#pragma once

#include "launcher.h"
#include "problem.h"

namespace puma {

// Fused adapter, for (T, R) of (bf16, bf16), (bf16, float), (f16, f16), (f16, float), (float, float).
// With workspace = null nothing is launched and the bytes it needs are returned.
template <typename T, typename R>
int64_t fused_forward(const CudaLauncher& launcher, const ForwardProblem& problem, char* workspace);
template <typename T, typename R>
int64_t fused_backward(const CudaLauncher& launcher, const BackwardProblem& problem, char* workspace);

// T: float or double.
template <typename T>
void prompts_forward(const CudaLauncher& launcher, const PromptArguments<T>& arguments);
template <typename T>
void prompts_backward(const CudaLauncher& launcher, const PromptGradientArguments<T>& arguments);

}  // namespace puma
