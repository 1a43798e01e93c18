#include "functions.h"
#include "launch.cuh"
#include "prompts_launch.h"

namespace puma {

template <typename T>
void prompts_forward(const CudaLauncher& launcher, const PromptArguments<T>& arguments) {
  launch_prompts(launcher, arguments);
}

template <typename T>
void prompts_backward(const CudaLauncher& launcher, const PromptGradientArguments<T>& arguments) {
  launch_prompt_gradients(launcher, arguments);
}

template void prompts_forward<float>(const CudaLauncher&, const PromptArguments<float>&);
template void prompts_forward<double>(const CudaLauncher&, const PromptArguments<double>&);
template void prompts_backward<float>(const CudaLauncher&, const PromptGradientArguments<float>&);
template void prompts_backward<double>(const CudaLauncher&, const PromptGradientArguments<double>&);

}  // namespace puma
