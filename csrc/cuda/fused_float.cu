#include "fused_instances.cuh"

namespace puma {

PUMA_INSTANTIATE_FUSED(float, float);

}  // namespace puma
