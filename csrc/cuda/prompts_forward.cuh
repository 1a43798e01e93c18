// Prompt matching. S = softmax(attention), U = keys / |keys|; weights = cos(query * S, keys)
// = query (S U)^T * inverse_norm with inverse_norm = 1 / sqrt(query^2 (S^2)^T); prompt = weights @ prompts. The product
// of shape (B, M, C) is never built. Two launches forward, two backward. T: float or double; sums in a fixed order, no
// atomics.
// The sizes are small: what takes time is waiting. So a thread loads all it needs of a tile before it uses any of it, a
// tile takes the published sizes (B = 180, M = 20, C = 384) in one or a few goes, and of two launches the second loads
// the operator's inputs while the first still runs.
#pragma once

#include "prompt_tools.cuh"

namespace puma {

inline constexpr int kWeightImages = 4;  // images per warp in prompt_weights

// Forward, launch 1: one warp per (4 images, prompt). The divisors of S = e / sum(e), e = exp(attention - a), and of U
// wait until the end, and a may be any number: one pass over the channels, in which every lane has its own a.
template <typename T>
PUMA_DEVICE void prompt_weights(const PromptArguments<T>& p) {
  dev::let_next_kernel_begin();
  constexpr int kSteps = 48 / sizeof(T);  // 12 in float: 384 channels
  const auto task = static_cast<uint32_t>(dev::block() * kPromptWarps + dev::warp());
  const auto pool = static_cast<uint32_t>(p.pool);
  const int64_t first_image = static_cast<int64_t>(task / pool) * kWeightImages, m = task % pool;
  if (first_image >= p.batch) return;
  const int images = count_up_to<kWeightImages>(p.batch - first_image);

  T largest = std::numeric_limits<T>::lowest();  // not -infinity: -infinity minus that is NaN
  T e_sum = 0, key_square = 0, numerator[kWeightImages] = {}, square[kWeightImages] = {};
  for_tiles<32 * kSteps>(0, p.channels, [&](int64_t begin, auto full) {
    T logit[kSteps], key[kSteps], query[kWeightImages][kSteps];
    const T* logits = p.attention + m * p.channels + begin + dev::lane();
    const T* keys = p.keys + m * p.channels + begin + dev::lane();
    const T* queries = p.query + first_image * p.channels + begin + dev::lane();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const bool inside = full || begin + 32 * s + dev::lane() < p.channels;
      logit[s] = inside_or(inside, logits + 32 * s, -std::numeric_limits<T>::infinity());
      key[s] = inside_or(inside, keys + 32 * s, T(0));
#pragma unroll
      for (int i = 0; i < kWeightImages; ++i) {
        query[i][s] = inside_or(inside, queries + (i < images ? i : 0) * p.channels + 32 * s, T(0));
      }
    }
    const T before = largest;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) largest = larger(largest, logit[s]);
    const T scale = dev::exponential(before - largest);
    e_sum *= scale;
#pragma unroll
    for (int i = 0; i < kWeightImages; ++i) {
      numerator[i] *= scale;
      square[i] *= scale * scale;
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const T e = dev::exponential(logit[s] - largest);
      e_sum += e;
      key_square += key[s] * key[s];
#pragma unroll
      for (int i = 0; i < kWeightImages; ++i) {
        const T q = query[i][s];
        numerator[i] += q * (e * key[s]);
        square[i] += q * q * (e * e);
      }
    }
  });

  const T scale = dev::exponential(largest - largest_of_warp(largest));
  T sum[2 * kWeightImages + 2];
#pragma unroll
  for (int i = 0; i < kWeightImages; ++i) {
    sum[i] = numerator[i] * scale;
    sum[kWeightImages + i] = square[i] * (scale * scale);
  }
  sum[2 * kWeightImages] = e_sum * scale;
  sum[2 * kWeightImages + 1] = key_square;
  sum_over_warp(sum);
  if (dev::lane() >= images) return;
  T own_numerator = sum[0], own_square = sum[kWeightImages];  // of image dev::lane()
#pragma unroll
  for (int i = 1; i < kWeightImages; ++i) {
    if (dev::lane() == i) own_numerator = sum[i], own_square = sum[kWeightImages + i];
  }
  const T total = sum[2 * kWeightImages], norm = dev::square_root(sum[2 * kWeightImages + 1]);
  const T norm_squared = own_square / (total * total);
  const T inverse_norm = T(1) / dev::square_root(norm_squared < p.tiny ? p.tiny : norm_squared);
  const int64_t at = (first_image + dev::lane()) * p.pool + m;
  p.weights[at] = own_numerator / total / (norm < p.tiny ? p.tiny : norm) * inverse_norm;
  p.inverse_norm[at] = inverse_norm;
}

inline constexpr int kMatchImages = 12;  // images per block in prompt_match
inline constexpr int kMatchPool = 20;    // prompts at a time
inline constexpr int kMatchColumns = 2 * kPromptThreads;

template <typename T>
struct alignas(16) MatchShared {
  T weight[kMatchPool][kMatchImages];
};

// Forward, launch 2: one block per (12 images, 512 columns of the prompts).
template <typename T>
PUMA_DEVICE void prompt_match(const PromptArguments<T>& p, int column_blocks) {
  auto& shared = *reinterpret_cast<MatchShared<T>*>(dev::shared_memory());
  const int block = static_cast<int>(dev::block());
  const int64_t first_image = static_cast<int64_t>(block / column_blocks) * kMatchImages;
  const int64_t first_column = static_cast<int64_t>(block % column_blocks) * kMatchColumns + dev::thread();
  const int64_t column[2] = {first_column, first_column + kPromptThreads};

  const bool inside[2] = {column[0] < p.prompt_size, column[1] < p.prompt_size};
  const int images = count_up_to<kMatchImages>(p.batch - first_image);

  T prompt[kMatchImages][2] = {};
  const T* prompts = p.prompts + first_column;
  for (int64_t first = 0; first < p.pool; first += kMatchPool) {
    const int count = count_up_to<kMatchPool>(p.pool - first);
    T value[kMatchPool][2];
#pragma unroll
    for (int i = 0; i < kMatchPool; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) value[i][h] = inside_or(i < count && inside[h], prompts + h * kPromptThreads, T(0));
      prompts += p.prompt_size;
    }
    if (first == 0) {
      dev::wait_for_previous_kernel();
    } else {
      dev::sync_block();
    }
    if (dev::thread() < kMatchPool * kMatchImages) {
      const int row = dev::thread() / kMatchPool, i = dev::thread() % kMatchPool;
      const T* weight = p.weights + (first_image + row) * p.pool + first + i;
      dev::store_shared(&shared.weight[i][row], inside_or(row < images && i < count, weight, T(0)));
    }
    dev::sync_block();
#pragma unroll
    for (int i = 0; i < kMatchPool; ++i) {
#pragma unroll
      for (int row = 0; row < kMatchImages; ++row) {
        const T weight = dev::load_shared(&shared.weight[i][row]);
        prompt[row][0] += weight * value[i][0];
        prompt[row][1] += weight * value[i][1];
      }
    }
  }
  T* out = p.prompt + first_image * p.prompt_size + first_column;
#pragma unroll
  for (int row = 0; row < kMatchImages; ++row) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row < images && inside[h]) out[h * kPromptThreads] = prompt[row][h];
    }
    out += p.prompt_size;
  }
}
static_assert(kMatchPool * kMatchImages <= kPromptThreads);

}  // namespace puma
