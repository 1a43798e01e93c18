// Prompt matching. S = softmax(attention), U = keys / |keys|; weights = cos(query * S, keys) = query (S U)^T * inverse_norm
// with inverse_norm = 1 / sqrt(query^2 (S^2)^T); prompt = weights @ prompts. The (B, M, C) product is never built.
// Two launches forward, two backward. T: float or double; sums in a fixed order, no atomics.
#pragma once

#include "device.cuh"
#include "problem.h"

namespace puma {

inline constexpr int kPromptThreads = 256;
inline constexpr int kPromptWarps = kPromptThreads / 32;

struct Sum {
  template <typename T>
  PUMA_DEVICE static T join(T a, T b) { return a + b; }
};
struct Maximum {
  template <typename T>
  PUMA_DEVICE static T join(T a, T b) { return a > b || a != a ? a : b; }  // NaN wins
};

template <typename Op, typename T>
PUMA_DEVICE T reduce_warp(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = Op::join(value, dev::shuffle_xor(value, mask));
  return value;
}

// Over the block; every thread gets the result. Uses kPromptWarps elements of `shared`.
template <typename Op, typename T>
PUMA_DEVICE T reduce_block(T value, T* shared) {
  value = reduce_warp<Op>(value);
  dev::sync_block();
  if (dev::lane() == 0) dev::store_shared(shared + dev::warp(), value);
  dev::sync_block();
  T result = dev::load_shared(shared);
  for (int w = 1; w < kPromptWarps; ++w) result = Op::join(result, dev::load_shared(shared + w));
  return result;
}

// One block: row m of S and S * U, and |keys[m]|.
template <typename T, typename Arguments>
PUMA_DEVICE T focus_row(const Arguments& p, int64_t m) {
  auto* shared = reinterpret_cast<T*>(dev::shared_memory());
  const T* logits = p.attention + m * p.channels;
  const T* key = p.keys + m * p.channels;
  T largest = logits[0], squares = 0;
  for (int64_t c = dev::thread(); c < p.channels; c += kPromptThreads) {
    largest = Maximum::join(largest, logits[c]);
    squares += key[c] * key[c];
  }
  largest = reduce_block<Maximum>(largest, shared);
  const T norm = dev::square_root(reduce_block<Sum>(squares, shared));
  T sum = 0;
  for (int64_t c = dev::thread(); c < p.channels; c += kPromptThreads) sum += dev::exponential(logits[c] - largest);
  sum = reduce_block<Sum>(sum, shared);
  for (int64_t c = dev::thread(); c < p.channels; c += kPromptThreads) {
    const T s = dev::exponential(logits[c] - largest) / sum;
    p.focus[m * p.channels + c] = s;
    p.focused_keys[m * p.channels + c] = s * (key[c] / (norm < p.tiny ? p.tiny : norm));
  }
  return norm;
}

// Forward, launch 1: one block per prompt.
template <typename T>
PUMA_DEVICE void prompt_focus(const PromptArguments<T>& p) {
  focus_row<T>(p, dev::block());
}

inline constexpr int kMatchRows = kPromptWarps;  // images per block, one per warp
inline constexpr int kMatchPool = 32;            // prompts at a time
inline constexpr int kMatchColumns = 2 * kPromptThreads;

template <typename T>
inline constexpr int kMatchSharedBytes = kMatchRows * kMatchPool * static_cast<int>(sizeof(T));

// Forward, launch 2: one block per (8 images, 512 columns of the prompts). Each computes its images' weights itself:
// cheaper than another launch.
template <typename T>
PUMA_DEVICE void prompt_match(const PromptArguments<T>& p, int64_t column_blocks) {
  auto* weights = reinterpret_cast<T*>(dev::shared_memory());  // [kMatchRows][kMatchPool]
  const int64_t first_image = dev::block() / column_blocks * kMatchRows;
  const int64_t column_block = dev::block() % column_blocks;
  const int64_t image = first_image + dev::warp();
  const int64_t first_column = column_block * kMatchColumns + dev::thread();
  const int64_t column[2] = {first_column, first_column + kPromptThreads};

  T prompt[kMatchRows][2] = {};
  for (int64_t pool_begin = 0; pool_begin < p.pool; pool_begin += kMatchPool) {
    const int pool_count = static_cast<int>(p.pool - pool_begin < kMatchPool ? p.pool - pool_begin : kMatchPool);
    for (int i = 0; i < pool_count; ++i) {
      const int64_t m = pool_begin + i;
      T numerator = 0, square = 0;
      if (image < p.batch) {
        for (int64_t c = dev::lane(); c < p.channels; c += 32) {
          const T q = p.query[image * p.channels + c];
          const T s = p.focus[m * p.channels + c];
          numerator += q * p.focused_keys[m * p.channels + c];
          square += q * q * (s * s);
        }
      }
      numerator = reduce_warp<Sum>(numerator);
      square = reduce_warp<Sum>(square);
      const T inverse_norm = T(1) / dev::square_root(square < p.tiny ? p.tiny : square);
      if (dev::lane() == 0) {
        const T weight = image < p.batch ? numerator * inverse_norm : T(0);
        dev::store_shared(weights + dev::warp() * kMatchPool + i, weight);
        if (column_block == 0 && image < p.batch) {
          p.weights[image * p.pool + m] = weight;
          p.inverse_norm[image * p.pool + m] = inverse_norm;
        }
      }
    }
    dev::sync_block();
    for (int i = 0; i < pool_count; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const T value = column[h] < p.prompt_size ? p.prompts[(pool_begin + i) * p.prompt_size + column[h]] : T(0);
#pragma unroll
        for (int row = 0; row < kMatchRows; ++row) {
          prompt[row][h] += dev::load_shared(weights + row * kMatchPool + i) * value;
        }
      }
    }
    dev::sync_block();
  }
#pragma unroll
  for (int row = 0; row < kMatchRows; ++row) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (first_image + row < p.batch && column[h] < p.prompt_size) {
        p.prompt[(first_image + row) * p.prompt_size + column[h]] = prompt[row][h];
      }
    }
  }
}

inline constexpr int kGradientImages = 4;   // images per block in grad_of_weights
inline constexpr int kGradientPrompts = 8;  // prompts per block in grad_of_prompts

// Four images: gradient of their weights, and from it those of the numerator and of the squared norm.
template <typename T>
PUMA_DEVICE void grad_of_weights(const PromptGradientArguments<T>& p, int64_t first_image) {
  for (int64_t m = dev::warp(); m < p.pool; m += kPromptWarps) {
    T grad[kGradientImages] = {};
    if (p.grad_prompt != nullptr) {
      for (int64_t x = dev::lane(); x < p.prompt_size; x += 32) {
        const T value = p.prompts[m * p.prompt_size + x];
#pragma unroll
        for (int i = 0; i < kGradientImages; ++i) {
          if (first_image + i < p.batch) grad[i] += p.grad_prompt[(first_image + i) * p.prompt_size + x] * value;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kGradientImages; ++i) {
      const T total = reduce_warp<Sum>(grad[i]);
      if (first_image + i < p.batch && dev::lane() == 0) {
        const int64_t at = (first_image + i) * p.pool + m;
        const T g = total + (p.grad_weights != nullptr ? p.grad_weights[at] : T(0));
        const T inverse = p.inverse_norm[at];
        const bool clamped = inverse * inverse * p.tiny >= T(1);
        p.grad_numerator[at] = g * inverse;
        p.grad_square[at] = clamped ? T(0) : T(-0.5) * g * p.weights[at] * inverse * inverse;
      }
    }
  }
}

// Eight prompts, 256 of their columns: weights^T @ grad_prompt.
template <typename T>
PUMA_DEVICE void grad_of_prompts(const PromptGradientArguments<T>& p, int64_t first_prompt, int64_t column) {
  T sum[kGradientPrompts] = {};
  if (column >= p.prompt_size) return;
  if (p.grad_prompt != nullptr) {
    for (int64_t b = 0; b < p.batch; ++b) {
      const T g = p.grad_prompt[b * p.prompt_size + column];
#pragma unroll
      for (int i = 0; i < kGradientPrompts; ++i) {
        if (first_prompt + i < p.pool) sum[i] += p.weights[b * p.pool + first_prompt + i] * g;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kGradientPrompts; ++i) {
    if (first_prompt + i < p.pool) p.grad_prompts[(first_prompt + i) * p.prompt_size + column] = sum[i];
  }
}

struct PromptGradientGrid {
  int64_t focus_blocks;    // M
  int64_t image_blocks;    // ceil(B / 4)
  int64_t column_blocks;   // ceil(L * C / 256)
  int64_t prompt_blocks;   // ceil(M / 8) * column_blocks
};

// Backward, launch 1: three kinds of blocks that do not need each other.
template <typename T>
PUMA_DEVICE void prompt_gradient_first(const PromptGradientArguments<T>& p, const PromptGradientGrid& grid) {
  int64_t block = dev::block();
  if (block < grid.focus_blocks) {
    const T norm = focus_row<T>(p, block);
    if (dev::thread() == 0) p.key_norm[block] = norm;
    return;
  }
  block -= grid.focus_blocks;
  if (block < grid.image_blocks) {
    grad_of_weights(p, block * kGradientImages);
    return;
  }
  block -= grid.image_blocks;
  const int64_t column = block % grid.column_blocks * kPromptThreads + dev::thread();
  grad_of_prompts(p, block / grid.column_blocks * kGradientPrompts, column);
}

// One prompt: gradients of its key and of its attention logits.
template <typename T>
PUMA_DEVICE void grad_of_pool_row(const PromptGradientArguments<T>& p, int64_t m) {
  auto* shared = reinterpret_cast<T*>(dev::shared_memory());
  const T norm = p.key_norm[m];
  const bool clamped = norm < p.tiny;
  const T divisor = clamped ? p.tiny : norm;
  T along_focus = 0, along_key = 0;  // sum_c S dS, sum_c U dU
  for (int64_t c = dev::thread(); c < p.channels; c += kPromptThreads) {
    T numerator = 0, square = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      const T q = p.query[b * p.channels + c];
      numerator += p.grad_numerator[b * p.pool + m] * q;
      square += p.grad_square[b * p.pool + m] * (q * q);
    }
    const int64_t at = m * p.channels + c;
    const T s = p.focus[at];
    const T u = p.keys[at] / divisor;
    const T grad_focus = numerator * u + T(2) * s * square;
    const T grad_unit = numerator * s;
    along_focus += s * grad_focus;
    along_key += u * grad_unit;
    p.grad_attention[at] = grad_focus;  // finished below, by the same thread
    p.grad_keys[at] = grad_unit;
  }
  along_focus = reduce_block<Sum>(along_focus, shared);
  along_key = reduce_block<Sum>(along_key, shared);
  for (int64_t c = dev::thread(); c < p.channels; c += kPromptThreads) {
    const int64_t at = m * p.channels + c;
    const T u = p.keys[at] / divisor;
    p.grad_attention[at] = p.focus[at] * (p.grad_attention[at] - along_focus);
    p.grad_keys[at] = (p.grad_keys[at] - (clamped ? T(0) : u * along_key)) / divisor;
  }
}

// One image: gradient of its query.
template <typename T>
PUMA_DEVICE void grad_of_query_row(const PromptGradientArguments<T>& p, int64_t b) {
  for (int64_t c = dev::thread(); c < p.channels; c += kPromptThreads) {
    T numerator = 0, square = 0;
    for (int64_t m = 0; m < p.pool; ++m) {
      const T s = p.focus[m * p.channels + c];
      numerator += p.grad_numerator[b * p.pool + m] * p.focused_keys[m * p.channels + c];
      square += p.grad_square[b * p.pool + m] * (s * s);
    }
    p.grad_query[b * p.channels + c] = numerator + T(2) * p.query[b * p.channels + c] * square;
  }
}

// Backward, launch 2: one block per prompt, then one per image if the query wants a gradient.
template <typename T>
PUMA_DEVICE void prompt_gradient_second(const PromptGradientArguments<T>& p) {
  if (dev::block() < p.pool) {
    grad_of_pool_row(p, dev::block());
  } else {
    grad_of_query_row(p, dev::block() - p.pool);
  }
}

}  // namespace puma
