// How the kernels are launched: what depends on sizes and on the device, and on nothing else. Shared with the tests.
#pragma once

#include <algorithm>

#include "kernels.cuh"
#include "problem.h"
#include "sizes.h"

namespace puma {

// Blocks that pack `units` units of weights; one more block lists the samples.
inline int64_t plan_pack_blocks(int64_t units) {
  return std::min<int64_t>(divide_up(units, kPrepareThreads), 1024);
}

struct AdapterPlan {
  bool resident;
  int row_stages_at;
  int shared_bytes;
  int64_t blocks;
};

// What the kernel's types say of an adapter's launch.
struct AdapterShape {
  int threads;              // of a block
  int step_bytes;           // of packed weights
  bool may_use_warpgroups;  // with which the weights come by bulk copies
  bool may_stage_rows;
};

// steps: of one matrix; products: 1 or 2.
inline AdapterPlan plan_adapter(const DeviceLimits& device, const AdapterSizes& s, const AdapterShape& shape,
                                int64_t steps, int products) {
  const int row_bytes = device.warpgroups && shape.may_stage_rows ? kRowStages * kItemBytes * shape.threads : 0;
  const int ring_stages = device.warpgroups && shape.may_use_warpgroups ? kBulkRingStages : kCopiedRingStages;
  const int64_t all = kControlBytes + products * steps * shape.step_bytes;
  const bool resident = all + row_bytes <= device.shared_bytes_per_block;
  const int weights_end = static_cast<int>(resident ? all : kControlBytes + ring_stages * shape.step_bytes);
  const int64_t tiles = s.samples * divide_up(s.tokens_per_sample, kTileRows);  // kept or dropped: at most as many
  return {resident, weights_end, weights_end + row_bytes,
          std::max<int64_t>(1, std::min<int64_t>(device.multiprocessors, tiles))};
}

struct GradientPlan {
  int channel_tiles;
  int splits;
  int stages;
  int shared_bytes;
  int64_t blocks;
  int64_t sum_blocks;
  int64_t part_elements;  // of the float workspace
};

// About one block per multiprocessor, and no more splits than there are chunks of rows. stage_bytes: of the ring.
inline GradientPlan plan_gradient(const DeviceLimits& device, const AdapterSizes& s, int kernel_width, int chunk_rows,
                                  int stage_bytes) {
  GradientPlan plan{};
  plan.channel_tiles = static_cast<int>(divide_up(s.channels, kChannelTile));
  const int64_t chunks = std::max<int64_t>(1, s.samples * divide_up(s.tokens_per_sample, chunk_rows));
  plan.splits = static_cast<int>(std::clamp<int64_t>(device.multiprocessors / (2 * plan.channel_tiles), 1, chunks));
  plan.stages = std::clamp(device.shared_bytes_per_block / stage_bytes, 2, kMostGradientStages);
  plan.shared_bytes = plan.stages * stage_bytes;
  plan.blocks = 2LL * plan.channel_tiles * plan.splits;
  plan.sum_blocks = 2LL * plan.channel_tiles * (kChannelTile / kReduceTile) * (kernel_width / kReduceTile);
  plan.part_elements = plan.blocks * kChannelTile * kernel_width;
  return plan;
}

inline int64_t rows_blocks(const DeviceLimits& device, int64_t elements) {
  return std::clamp<int64_t>(divide_up(elements, kRowsThreads), 1, 16LL * device.multiprocessors);
}

}  // namespace puma
