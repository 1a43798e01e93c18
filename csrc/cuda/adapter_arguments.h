// What the adapter's main kernel is given. No device code.
#pragma once

#include <cstdint>
#include <type_traits>

#include "problem.h"

namespace puma {

// The forward's branch: there is none, it has the residual's type R, or it has the tokens' type T next to a wider R.
enum class Branch { kNone, kWide, kNarrow };
template <typename T, typename R, Branch kBranch>
using BranchType = std::conditional_t<kBranch == Branch::kNarrow, T, R>;

struct AdapterArguments {
  const void* input;     // rows of the first product: tokens (T), or the gradient of the output (R)
  const void* residual;  // forward: (R)
  const void* branch;    // forward: added to the residual; see Branch
  void* output;          // forward: out (R); backward: gradient of the tokens (T), null if not wanted
  const void* mask;      // backward: hidden (T), compacted rows of `width` elements
  void* activation;      // forward: hidden (T), compacted rows of `width`; backward: delta (T), rows of kWidth. Or null
  void* narrow_input;    // backward, where R is wider than T: the input as T, compacted rows of `channels`. Or null
  SampleList* list;        // these three: see PrepareArguments
  const int32_t* order;
  const float* factors;
  const float* gate;       // (samples,); or null: 1. See prefetch_kept_input
  const Bytes16* weights;  // packed
  int64_t samples;
  int tokens_per_sample;
  int channels;
  int padded_channels;
  int width;  // r
  bool resident;      // all packed weights fit into shared memory
  int row_stages_at;  // byte of shared memory, see StagedRows
};

inline constexpr int kTileRows = 16;  // of a warp

}  // namespace puma
