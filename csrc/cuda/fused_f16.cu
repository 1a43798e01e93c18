#include "fused_instances.cuh"

namespace puma {

PUMA_INSTANTIATE_FUSED(f16, f16);
PUMA_INSTANTIATE_FUSED(f16, float);

}  // namespace puma
