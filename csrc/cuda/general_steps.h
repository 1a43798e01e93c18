// The steps of the general path as functions. Declared for every compiler, defined in general_launch.h for those that
// see the kernels. Everything is enqueued; nothing waits. Launcher: CudaLauncher, or the tests' host launcher.
#pragma once

#include "problem.h"

namespace puma {

// Writes the number of kept samples, and their order: kept ones first, then the dropped ones.
template <typename Launcher>
void list_kept_samples(const Launcher& launcher, const void* gate, bool gate_is_double, int64_t samples,
                       SampleList* list, int32_t* order);

// T: type of the tokens, S: of the source, R: of the residual. See general.cuh.
template <typename S, typename T, typename Launcher>
void gather_kept_rows(const Launcher& launcher, const RowsArguments& rows, const void* source, void* compact,
                      bool with_factor);
template <typename T, typename R, typename Launcher>
void scatter_add_kept_rows(const Launcher& launcher, const RowsArguments& rows, const ForwardProblem& problem,
                           const void* product);
template <typename T, typename Launcher>
void scatter_kept_rows(const Launcher& launcher, const RowsArguments& rows, const void* compact, void* out);
template <typename T, typename Launcher>
void rectify_values(const Launcher& launcher, int64_t count, void* values);
template <typename T, typename Launcher>
void mask_gradient(const Launcher& launcher, const RowsArguments& rows, int64_t width, const void* hidden, void* delta,
                   void* clean);

}  // namespace puma
