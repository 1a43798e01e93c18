// Prompt matching from arguments to launches; Launcher as in fused.h.
#pragma once

#include "kernels.cuh"
#include "sizes.h"

namespace puma {

template <typename T, typename Launcher>
void launch_prompts(const Launcher& launcher, const PromptArguments<T>& a) {
  using Focus = PromptFocusKernel<T>;
  using Match = PromptMatchKernel<T>;
  launcher.template run<Focus>(a.pool, Focus::kSharedBytes, a);
  const int64_t column_blocks = divide_up(a.prompt_size, kMatchColumns);
  launcher.template run<Match>(divide_up(a.batch, kMatchRows) * column_blocks, Match::kSharedBytes, {a, column_blocks});
}

template <typename T, typename Launcher>
void launch_prompt_gradients(const Launcher& launcher, const PromptGradientArguments<T>& a) {
  using First = PromptGradientFirstKernel<T>;
  using Second = PromptGradientSecondKernel<T>;
  PromptGradientGrid grid{};
  grid.focus_blocks = a.pool;
  grid.image_blocks = divide_up(a.batch, kGradientImages);
  grid.column_blocks = divide_up(a.prompt_size, kPromptThreads);
  grid.prompt_blocks = divide_up(a.pool, kGradientPrompts) * grid.column_blocks;
  const int64_t first_blocks = grid.focus_blocks + grid.image_blocks + grid.prompt_blocks;
  launcher.template run<First>(first_blocks, First::kSharedBytes, {a, grid});
  launcher.template run<Second>(a.pool + (a.grad_query != nullptr ? a.batch : 0), Second::kSharedBytes, a);
}

}  // namespace puma
