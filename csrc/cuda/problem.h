// What the kernels are asked to do, in plain pointers and sizes. No device code: read by every compiler.
#pragma once

#include <cstdint>

#include "types.h"

namespace puma {

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes_per_block;  // at most, opted in
  bool warpgroups;             // code for sm_90a runs there; code for plain sm_90, if that was built, runs as well
};

struct AdapterSizes {
  int64_t samples;            // B
  int64_t tokens_per_sample;  // N
  int64_t channels;           // C
  int64_t width;              // r
};

// A C x r or r x C matrix in memory, any strides (in elements).
struct Matrix {
  const void* data;
  int64_t row_stride;
  int64_t column_stride;
  bool is_float;  // else of the tokens' type. Its gradient's type is the same
};

struct ForwardProblem {
  AdapterSizes sizes;
  const void* residual;
  const void* tokens;
  Matrix down;
  Matrix up;
  const void* gate;  // (B,) float, double for float64; or null: 1
  double scale;
  void* out;
  void* hidden;    // or null
  void* prepared;  // see PreparedParts; null if hidden is
  const void* branch;  // added to the residual; or null
  bool branch_is_narrow;  // branch has the tokens' type, not the residual's
};

struct BackwardProblem {
  AdapterSizes sizes;
  const void* grad;
  const void* tokens;
  Matrix down;
  Matrix up;
  const void* gate;  // (B,) float, double for float64; or null: 1
  const void* hidden;
  const void* prepared;  // by the forward
  double scale;
  void* grad_tokens;  // or null
  void* grad_down;    // or null, together with grad_up
  void* grad_up;
};

// What is listed of the samples, beside their order.
struct SampleList {
  int32_t kept;        // how many
  int32_t alike;       // whether the kept ones' gates are all the same
  int32_t next_chunk;  // a counter that starts at 0, see dropped.cuh
  int32_t unused;
};

// Of the general path: which rows of a (samples * tokens_per_sample, channels) matrix are kept.
struct RowsArguments {
  const void* gate;  // (samples,) double for float64, else float; or null: 1
  const SampleList* list;
  const int32_t* order;
  int64_t samples;
  int64_t tokens_per_sample;
  int64_t channels;
  double scale;
};

template <typename T>
struct PromptArguments {
  int64_t batch, pool, channels, prompt_size;  // B, M, C, L * C
  T tiny;                                      // smallest positive normal number
  const T* query;
  const T* keys;
  const T* attention;
  const T* prompts;
  T* weights;       // (B, M)
  T* inverse_norm;  // (B, M)
  T* prompt;        // (B, L * C)
};

inline constexpr int kPromptSlices = 8;  // shares of the columns in grad_prompt @ prompts^T

template <typename T>
struct PromptGradientArguments {
  int64_t batch, pool, channels, prompt_size;
  T tiny;
  const T* grad_prompt;   // or null
  const T* grad_weights;  // or null
  const T* query;
  const T* keys;
  const T* attention;
  const T* prompts;
  const T* weights;
  const T* inverse_norm;
  T* focus;         // workspace (M, C): S
  T* focused_keys;  // workspace (M, C): S * U
  T* key_norm;      // workspace (M,)
  T* shares;        // workspace (kPromptSlices, B, M)
  T* grad_query;    // or null
  T* grad_keys;
  T* grad_attention;
  T* grad_prompts;
};

struct PromptGradientGrid {
  int prompt_blocks, column_blocks;         // of grad_of_prompts; those per row of the grid
  int tiles_of_batch, tiles_of_pool;        // of grad_of_weights, per slice
  int64_t slice_columns;                    // columns per slice
  int pool_blocks, pool_channel_blocks;     // of grad_of_pool
  int query_channel_blocks;                 // of grad_of_query
};

}  // namespace puma
