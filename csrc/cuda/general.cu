#include "functions.h"
#include "launch.cuh"
#include "plan.h"

namespace puma {

void list_kept_samples(const CudaLauncher& launcher, const void* gate, bool gate_is_double, int64_t samples, int32_t* kept,
                       int32_t* order) {
  PrepareArguments a{};
  a.gate = gate;
  a.gate_is_double = gate_is_double;
  a.samples = samples;
  a.kept = kept;
  a.order = order;
  launcher.run<PrepareKernel<float, 64>>(1, kPrepareSharedBytes, a);
}

template <typename S, typename T>
void gather_kept_rows(const CudaLauncher& launcher, const RowsArguments& rows, const void* source, void* compact, bool with_factor) {
  launcher.run<GatherRowsKernel<S, T>>(rows_blocks(launcher.limits(), rows.samples * rows.tokens_per_sample * rows.channels), 0,
                                       {rows, static_cast<const S*>(source), static_cast<T*>(compact), with_factor});
}

template <typename T, typename R>
void scatter_add_kept_rows(const CudaLauncher& launcher, const RowsArguments& rows, const void* residual, const void* branch, void* out) {
  launcher.run<ScatterAddRowsKernel<T, R>>(
      rows_blocks(launcher.limits(), rows.samples * rows.tokens_per_sample * rows.channels), 0,
      {rows, static_cast<const R*>(residual), static_cast<const T*>(branch), static_cast<R*>(out)});
}

template <typename T>
void scatter_kept_rows(const CudaLauncher& launcher, const RowsArguments& rows, const void* compact, void* out) {
  launcher.run<ScatterRowsKernel<T>>(rows_blocks(launcher.limits(), rows.samples * rows.tokens_per_sample * rows.channels), 0,
                                     {rows, static_cast<const T*>(compact), static_cast<T*>(out)});
}

template <typename T>
void rectify_values(const CudaLauncher& launcher, int64_t count, void* values) {
  launcher.run<RectifyKernel<T>>(rows_blocks(launcher.limits(), count), 0, {count, static_cast<T*>(values)});
}

template <typename T>
void mask_gradient(const CudaLauncher& launcher, const RowsArguments& rows, int64_t width, const void* hidden, void* delta, void* clean) {
  launcher.run<MaskKernel<T>>(rows_blocks(launcher.limits(), rows.samples * rows.tokens_per_sample * width), 0,
                              {rows, width, static_cast<const T*>(hidden), static_cast<T*>(delta), static_cast<T*>(clean)});
}

#define PUMA_INSTANTIATE_PAIR(T, R)                                                                                        \
  template void gather_kept_rows<R, T>(const CudaLauncher&, const RowsArguments&, const void*, void*, bool);               \
  template void scatter_add_kept_rows<T, R>(const CudaLauncher&, const RowsArguments&, const void*, const void*, void*)
#define PUMA_INSTANTIATE_TYPE(T)                                                                                           \
  PUMA_INSTANTIATE_PAIR(T, T);                                                                                             \
  template void scatter_kept_rows<T>(const CudaLauncher&, const RowsArguments&, const void*, void*);                       \
  template void rectify_values<T>(const CudaLauncher&, int64_t, void*);                                                    \
  template void mask_gradient<T>(const CudaLauncher&, const RowsArguments&, int64_t, const void*, void*, void*)

PUMA_INSTANTIATE_TYPE(double);
PUMA_INSTANTIATE_TYPE(float);
PUMA_INSTANTIATE_TYPE(bf16);
PUMA_INSTANTIATE_TYPE(f16);
PUMA_INSTANTIATE_PAIR(bf16, float);
PUMA_INSTANTIATE_PAIR(f16, float);

}  // namespace puma
