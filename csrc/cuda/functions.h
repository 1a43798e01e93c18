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

// The general path's steps, see general.cuh. T: tokens, R: residual; also (double, double).
void list_kept_samples(const CudaLauncher& launcher, const void* gate, bool gate_is_double, int64_t samples, int32_t* kept,
                       int32_t* order);
template <typename S, typename T>
void gather_kept_rows(const CudaLauncher& launcher, const RowsArguments& rows, const void* source, void* compact, bool with_factor);
template <typename T, typename R>
void scatter_add_kept_rows(const CudaLauncher& launcher, const RowsArguments& rows, const void* residual, const void* branch, void* out);
template <typename T>
void scatter_kept_rows(const CudaLauncher& launcher, const RowsArguments& rows, const void* compact, void* out);
template <typename T>
void rectify_values(const CudaLauncher& launcher, int64_t count, void* values);
template <typename T>
void mask_gradient(const CudaLauncher& launcher, const RowsArguments& rows, int64_t width, const void* hidden, void* delta, void* clean);

// T: float or double.
template <typename T>
void prompts_forward(const CudaLauncher& launcher, const PromptArguments<T>& arguments);
template <typename T>
void prompts_backward(const CudaLauncher& launcher, const PromptGradientArguments<T>& arguments);

}  // namespace puma
