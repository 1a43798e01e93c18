#include "general_launch.h"
#include "launch.cuh"

namespace puma {

#define PUMA_INSTANTIATE_PAIR(T, R)                                                                          \
  template void gather_kept_rows<R, T>(const CudaLauncher&, const RowsArguments&, const void*, void*, bool); \
  template void scatter_add_kept_rows<T, R>(const CudaLauncher&, const RowsArguments&, const ForwardProblem&, \
                                            const void*)
#define PUMA_INSTANTIATE_TYPE(T)                                                                                   \
  PUMA_INSTANTIATE_PAIR(T, T);                                                                                     \
  template void scatter_kept_rows<T>(const CudaLauncher&, const RowsArguments&, const void*, void*);               \
  template void rectify_values<T>(const CudaLauncher&, int64_t, void*);                                            \
  template void mask_gradient<T>(const CudaLauncher&, const RowsArguments&, int64_t, const void*, void*, void*)

template void list_kept_samples(const CudaLauncher&, const void*, bool, int64_t, SampleList*, int32_t*);
PUMA_INSTANTIATE_TYPE(double);
PUMA_INSTANTIATE_TYPE(float);
PUMA_INSTANTIATE_TYPE(bf16);
PUMA_INSTANTIATE_TYPE(f16);
PUMA_INSTANTIATE_PAIR(bf16, float);
PUMA_INSTANTIATE_PAIR(f16, float);

}  // namespace puma
