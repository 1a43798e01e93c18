#include "fused_instances.cuh"

namespace puma {

PUMA_INSTANTIATE_FUSED(bf16, bf16);
PUMA_INSTANTIATE_FUSED(bf16, float);

}  // namespace puma
