// Prompt matching from arguments to launches; Launcher as in fused.h.
#pragma once

#include "kernels.cuh"
#include "sizes.h"

namespace puma {

inline int blocks_for(int64_t count, int per_block) { return static_cast<int>(divide_up(count, per_block)); }

template <typename T, typename Launcher>
void launch_prompts(const Launcher& launcher, const PromptArguments<T>& a) {
  using Weights = PromptWeightsKernel<T>;
  using Match = PromptMatchKernel<T>;
  launcher.template run<Weights>(divide_up(divide_up(a.batch, kWeightImages) * a.pool, kPromptWarps), 0, a);
  const int column_blocks = blocks_for(a.prompt_size, kMatchColumns);
  launcher.template run<Match>(divide_up(a.batch, kMatchImages) * column_blocks, Match::kSharedBytes,
                               {a, column_blocks});
}

template <typename T, typename Launcher>
void launch_prompt_gradients(const Launcher& launcher, const PromptGradientArguments<T>& a) {
  using First = PromptGradientFirstKernel<T>;
  using Second = PromptGradientSecondKernel<T>;
  PromptGradientGrid grid{};
  grid.column_blocks = blocks_for(a.prompt_size, 32 * kGradientColumns<T>);
  grid.prompt_blocks = blocks_for(a.pool, kGradientPrompts) * grid.column_blocks;
  grid.tiles_of_batch = blocks_for(a.batch, kTileImages);
  grid.tiles_of_pool = blocks_for(a.pool, kTilePrompts);
  grid.slice_columns = divide_up(a.prompt_size, 32 * kPromptSlices) * 32;
  grid.pool_channel_blocks = blocks_for(a.channels, 32);
  grid.pool_blocks = blocks_for(a.pool, kPoolPrompts) * grid.pool_channel_blocks;
  grid.query_channel_blocks = blocks_for(a.channels, kSecondThreads);
  const int64_t tiles = static_cast<int64_t>(grid.tiles_of_batch) * grid.tiles_of_pool * kPromptSlices;
  const int64_t weight_blocks = a.grad_prompt != nullptr ? divide_up(tiles, kPromptWarps) : 0;
  launcher.template run<First>(grid.prompt_blocks + a.pool + weight_blocks, First::kSharedBytes, {a, grid});
  const int64_t query_blocks =
      a.grad_query != nullptr ? divide_up(a.batch, kQueryImages) * grid.query_channel_blocks : 0;
  launcher.template run<Second>(grid.pool_blocks + query_blocks, Second::kSharedBytes, {a, grid});
}

}  // namespace puma
