// Definitions of general_steps.h.
#pragma once

#include "general_steps.h"
#include "kernels.cuh"
#include "plan.h"

namespace puma {

template <typename Launcher>
void list_kept_samples(const Launcher& launcher, const void* gate, bool gate_is_double, int64_t samples,
                       SampleList* list, int32_t* order) {
  PrepareArguments a{};
  a.gate = gate;
  a.gate_is_double = gate_is_double;
  a.samples = samples;
  a.list = list;
  a.order = order;
  launcher.template run<PrepareKernel<float, 64>>(1, kPrepareSharedBytes, a);
}

inline int64_t elements(const RowsArguments& rows) { return rows.samples * rows.tokens_per_sample * rows.channels; }

template <typename S, typename T, typename Launcher>
void gather_kept_rows(const Launcher& launcher, const RowsArguments& rows, const void* source, void* compact,
                      bool with_factor) {
  launcher.template run<GatherRowsKernel<S, T>>(
      rows_blocks(launcher.limits(), elements(rows)), 0,
      {rows, static_cast<const S*>(source), static_cast<T*>(compact), with_factor});
}

template <typename T, typename R, typename Launcher>
void scatter_add_kept_rows(const Launcher& launcher, const RowsArguments& rows, const ForwardProblem& problem,
                           const void* product) {
  launcher.template run<ScatterAddRowsKernel<T, R>>(
      rows_blocks(launcher.limits(), elements(rows)), 0,
      {rows, static_cast<const R*>(problem.residual), problem.branch, problem.branch_is_narrow,
       static_cast<const T*>(product), static_cast<R*>(problem.out)});
}

template <typename T, typename Launcher>
void scatter_kept_rows(const Launcher& launcher, const RowsArguments& rows, const void* compact, void* out) {
  launcher.template run<ScatterRowsKernel<T>>(rows_blocks(launcher.limits(), elements(rows)), 0,
                                              {rows, static_cast<const T*>(compact), static_cast<T*>(out)});
}

template <typename T, typename Launcher>
void rectify_values(const Launcher& launcher, int64_t count, void* values) {
  launcher.template run<RectifyKernel<T>>(rows_blocks(launcher.limits(), count), 0, {count, static_cast<T*>(values)});
}

template <typename T, typename Launcher>
void mask_gradient(const Launcher& launcher, const RowsArguments& rows, int64_t width, const void* hidden, void* delta,
                   void* clean) {
  launcher.template run<MaskKernel<T>>(
      rows_blocks(launcher.limits(), rows.samples * rows.tokens_per_sample * width), 0,
      {rows, width, static_cast<const T*>(hidden), static_cast<T*>(delta), static_cast<T*>(clean)});
}

}  // namespace puma
