// The backward of prompt matching, see prompts_forward.cuh: in launch 1 what needs the upstream gradients, in launch 2
// what follows from the gradient of each weight.
#pragma once

#include "prompt_tools.cuh"

namespace puma {

// Sums over the block; every thread gets the result. `shared`: kPromptWarps elements per value.
template <typename T>
PUMA_DEVICE T largest_of_block(T value, T* shared) {
  value = largest_of_warp(value);
  if (dev::lane() == 0) dev::store_shared(shared + dev::warp(), value);
  dev::sync_block();
#pragma unroll
  for (int w = 0; w < kPromptWarps; ++w) value = larger(value, dev::load_shared(shared + w));
  return value;
}
template <typename T>
PUMA_DEVICE void sum_over_block(T (&value)[2], T* shared) {
  sum_over_warp(value);
  if (dev::lane() == 0) {
    dev::store_shared(shared + 2 * dev::warp(), value[0]);
    dev::store_shared(shared + 2 * dev::warp() + 1, value[1]);
  }
  dev::sync_block();
  value[0] = value[1] = 0;
#pragma unroll
  for (int w = 0; w < kPromptWarps; ++w) {
    value[0] += dev::load_shared(shared + 2 * w);
    value[1] += dev::load_shared(shared + 2 * w + 1);
  }
}

// One block: row m of S and S * U, and |keys[m]|.
template <typename T>
PUMA_DEVICE void focus_row(const PromptGradientArguments<T>& p, int64_t m) {
  auto* shared = reinterpret_cast<T*>(dev::shared_memory());
  const T* logits = p.attention + m * p.channels;
  const T* key = p.keys + m * p.channels;
  constexpr int kSteps = 4;
  T largest = -std::numeric_limits<T>::infinity();
  T sum[2] = {};  // of the exponentials, of the key's squares
  for (int64_t begin = dev::thread(); begin < p.channels; begin += kSteps * kPromptThreads) {
    T logit[kSteps], k[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t c = begin + s * kPromptThreads;
      logit[s] = inside_or(c < p.channels, logits + c, -std::numeric_limits<T>::infinity());
      k[s] = inside_or(c < p.channels, key + c, T(0));
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      largest = larger(largest, logit[s]);
      sum[1] += k[s] * k[s];
    }
  }
  largest = largest_of_block(largest, shared);
  for (int64_t c = dev::thread(); c < p.channels; c += kPromptThreads) sum[0] += dev::exponential(logits[c] - largest);
  sum_over_block(sum, shared + kPromptWarps);
  const T norm = dev::square_root(sum[1]);
  const T divisor = norm < p.tiny ? p.tiny : norm;
#pragma unroll 2
  for (int64_t c = dev::thread(); c < p.channels; c += kPromptThreads) {
    const T s = dev::exponential(logits[c] - largest) / sum[0];
    p.focus[m * p.channels + c] = s;
    p.focused_keys[m * p.channels + c] = s * (key[c] / divisor);
  }
  if (dev::thread() == 0) p.key_norm[m] = norm;
}

inline constexpr int kTileImages = 8, kTilePrompts = 4;  // of one warp in grad_of_weights: one result per lane

// One warp: its share of the columns in grad_prompt @ prompts^T, for 8 images and 4 prompts. The next launch adds the
// shares up.
template <typename T>
PUMA_DEVICE void grad_of_weights(const PromptGradientArguments<T>& p, const PromptGradientGrid& grid, int task) {
  constexpr int kSteps = 16 / sizeof(T);
  const int64_t first_prompt = task % grid.tiles_of_pool * kTilePrompts;
  task /= grid.tiles_of_pool;
  const int64_t first_image = task % grid.tiles_of_batch * kTileImages;
  const int64_t slice = task / grid.tiles_of_batch;
  if (slice >= kPromptSlices) return;
  const int64_t begin = slice * grid.slice_columns;
  const int64_t end = begin + grid.slice_columns < p.prompt_size ? begin + grid.slice_columns : p.prompt_size;
  // Rows past the last are read as the tile's first; their results go nowhere.
  const int images = count_up_to<kTileImages>(p.batch - first_image);
  const int prompts = count_up_to<kTilePrompts>(p.pool - first_prompt);

  T sum[kTileImages * kTilePrompts] = {};
  for_tiles<32 * kSteps>(begin, end, [&](int64_t column, auto full) {
    T grad[kTileImages][kSteps], value[kTilePrompts][kSteps];
    const T* grad_row = p.grad_prompt + first_image * p.prompt_size + column + dev::lane();
    const T* prompt_row = p.prompts + first_prompt * p.prompt_size + column + dev::lane();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const bool inside = full || column + 32 * s + dev::lane() < end;
#pragma unroll
      for (int i = 0; i < kTileImages; ++i) {
        grad[i][s] = inside_or(inside, grad_row + (i < images ? i : 0) * p.prompt_size + 32 * s, T(0));
      }
#pragma unroll
      for (int j = 0; j < kTilePrompts; ++j) {
        value[j][s] = inside_or(inside, prompt_row + (j < prompts ? j : 0) * p.prompt_size + 32 * s, T(0));
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kTileImages; ++i) {
#pragma unroll
        for (int j = 0; j < kTilePrompts; ++j) sum[i * kTilePrompts + j] += grad[i][s] * value[j][s];
      }
    }
  });
  const T share = sum_and_spread(sum);
  const int i = dev::lane() / kTilePrompts, j = dev::lane() % kTilePrompts;
  if (i < images && j < prompts) p.shares[(slice * p.batch + first_image + i) * p.pool + first_prompt + j] = share;
}

inline constexpr int kGradientPrompts = 10;  // of one block in grad_of_prompts
inline constexpr int kGradientImages = 24;   // of one warp at a time

template <typename T>
inline constexpr int kGradientColumns = 8 / sizeof(T);  // per thread

template <typename T>
struct alignas(16) PromptsShared {
  static constexpr int kStride = 12;  // rows of whole 16-byte units
  T weight[kPromptWarps * kGradientImages][kStride];
  T sum[kPromptWarps][kGradientPrompts][kGradientColumns<T> * 32];
};

// Ten prompts, 32 or 64 of their columns: weights^T @ grad_prompt, the images shared out to the warps.
template <typename T>
PUMA_DEVICE void grad_of_prompts(const PromptGradientArguments<T>& p, int64_t first_prompt, int64_t first_column) {
  constexpr int kColumns = kGradientColumns<T>, kImages = kPromptWarps * kGradientImages;
  constexpr int kStride = PromptsShared<T>::kStride, kRounds = kImages * kStride / kPromptThreads;
  static_assert(kRounds * kPromptThreads == kImages * kStride);
  auto& shared = *reinterpret_cast<PromptsShared<T>*>(dev::shared_memory());
  const int64_t column = first_column + dev::lane();
  T sum[kGradientPrompts][kColumns] = {};
  const int64_t batch = p.grad_prompt != nullptr ? p.batch : 0;
  for (int64_t first = 0; first < batch; first += kImages) {
    const int count = count_up_to<kImages>(batch - first);
    T weight[kRounds], grad[kGradientImages][kColumns];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int x = r * kPromptThreads + dev::thread(), image = x / kStride, j = x % kStride;
      const bool inside = image < count && j < kGradientPrompts && first_prompt + j < p.pool;
      weight[r] = inside_or(inside, p.weights + (first + image) * p.pool + first_prompt + j, T(0));
    }
#pragma unroll
    for (int h = 0; h < kColumns; ++h) {
      const int rows = column + 32 * h < p.prompt_size ? count - dev::warp() : 0;
      const T* row = p.grad_prompt + (first + dev::warp()) * p.prompt_size + column + 32 * h;
#pragma unroll
      for (int i = 0; i < kGradientImages; ++i, row += kPromptWarps * p.prompt_size) {
        grad[i][h] = inside_or(i * kPromptWarps < rows, row, T(0));
      }
    }
    if (first > 0) dev::sync_block();
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int x = r * kPromptThreads + dev::thread();
      dev::store_shared(&shared.weight[x / kStride][x % kStride], weight[r]);
    }
    dev::sync_block();
#pragma unroll
    for (int i = 0; i < kGradientImages; ++i) {
#pragma unroll
      for (int j = 0; j < kGradientPrompts; ++j) {
        const T weight = dev::load_shared(&shared.weight[i * kPromptWarps + dev::warp()][j]);
#pragma unroll
        for (int h = 0; h < kColumns; ++h) sum[j][h] += weight * grad[i][h];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kGradientPrompts; ++j) {
#pragma unroll
    for (int h = 0; h < kColumns; ++h) dev::store_shared(&shared.sum[dev::warp()][j][h * 32 + dev::lane()], sum[j][h]);
  }
  dev::sync_block();
#pragma unroll
  for (int r = 0; r * kPromptThreads < kGradientPrompts * kColumns * 32; ++r) {
    const int x = r * kPromptThreads + dev::thread(), j = x / (kColumns * 32), at = x % (kColumns * 32);
    if (j >= kGradientPrompts) break;
    T total = 0;
#pragma unroll
    for (int w = 0; w < kPromptWarps; ++w) total += dev::load_shared(&shared.sum[w][j][at]);
    if (first_prompt + j < p.pool && first_column + at < p.prompt_size) {
      p.grad_prompts[(first_prompt + j) * p.prompt_size + first_column + at] = total;
    }
  }
}

// Backward, launch 1: three kinds of blocks that do not need each other.
template <typename T>
PUMA_DEVICE void prompt_gradient_first(const PromptGradientArguments<T>& p, const PromptGradientGrid& grid) {
  dev::let_next_kernel_begin();
  int block = static_cast<int>(dev::block());
  if (block < grid.prompt_blocks) {
    const int64_t first_column = static_cast<int64_t>(block % grid.column_blocks) * kGradientColumns<T> * 32;
    grad_of_prompts(p, block / grid.column_blocks * kGradientPrompts, first_column);
    return;
  }
  block -= grid.prompt_blocks;
  if (block < p.pool) {
    focus_row(p, block);
    return;
  }
  block -= static_cast<int>(p.pool);
  grad_of_weights(p, grid, block * kPromptWarps + dev::warp());
}

inline constexpr int kSecondThreads = 512;
inline constexpr int kSecondWarps = kSecondThreads / 32;

// What follows from the gradient g of one weight; zeros if not `inside`.
template <typename T>
struct WeightGradients {
  T numerator, square;  // gradients of the weight's numerator and of query^2 (S^2)^T
  T along_key;          // its part of sum_c U dU, which is the sum of g * weight over the images
  T along_focus;        // its part of sum_c S dS: 0, as the cosine does not depend on the length of S, unless clamped
};

template <typename T>
PUMA_DEVICE WeightGradients<T> gradients_of_weight(const PromptGradientArguments<T>& p, int64_t image, int64_t m,
                                                   bool inside) {
  const int64_t at = image * p.pool + m;
  const T inverse = inside_or(inside, p.inverse_norm + at, T(0)), weight = inside_or(inside, p.weights + at, T(0));
  const T direct = inside && p.grad_weights != nullptr ? p.grad_weights[at] : T(0);
  T share[kPromptSlices], g = 0;
#pragma unroll
  for (int s = 0; s < kPromptSlices; ++s) {
    share[s] = inside_or(inside && p.grad_prompt != nullptr, p.shares + s * p.batch * p.pool + at, T(0));
  }
#pragma unroll
  for (int s = 0; s < kPromptSlices; ++s) g += share[s];
  g += direct;
  const bool clamped = inverse * inverse * p.tiny >= T(1);
  const T along = g * weight;
  return {g * inverse, clamped ? T(0) : T(-0.5) * along * inverse * inverse, along, clamped ? along : T(0)};
}

inline constexpr int kPoolPrompts = 4;  // of one block in grad_of_pool
inline constexpr int kPoolImages = 12;  // of one warp at a time

template <typename T>
struct alignas(16) PoolShared {
  T numerator[kSecondWarps * kPoolImages][kPoolPrompts], square[kSecondWarps * kPoolImages][kPoolPrompts];
  T sum[kSecondWarps][2 * kPoolPrompts][32];
  T along[kSecondWarps][2][kPoolPrompts];
};

// Four prompts, 32 channels: gradients of the keys and of the attention logits, the images shared out to the warps.
template <typename T>
PUMA_DEVICE void grad_of_pool(const PromptGradientArguments<T>& p, int64_t first_prompt, int64_t first_channel) {
  constexpr int kImages = kSecondWarps * kPoolImages;
  constexpr int kRounds = (kImages * kPoolPrompts + kSecondThreads - 1) / kSecondThreads;
  auto& shared = *reinterpret_cast<PoolShared<T>*>(dev::shared_memory());
  const int64_t c = first_channel + dev::lane();
  const T* query = p.query + (c < p.channels ? c : 0);

  T numerator[kPoolPrompts] = {}, square[kPoolPrompts] = {};
  T along[2] = {};  // of prompt dev::thread() % 4, along_key and along_focus
  for (int64_t first = 0; first < p.batch; first += kImages) {
    const int count = count_up_to<kImages>(p.batch - first);
    T q[kPoolImages];
#pragma unroll
    for (int i = 0; i < kPoolImages; ++i) {
      const int image = i * kSecondWarps + dev::warp();
      q[i] = inside_or(image < count, query + (first + image) * p.channels, T(0));
    }
    if (first == 0) {
      dev::wait_for_previous_kernel();
    } else {
      dev::sync_block();
    }
    WeightGradients<T> g[kRounds];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int x = r * kSecondThreads + dev::thread(), image = x / kPoolPrompts, j = x % kPoolPrompts;
      const bool inside = image < count && first_prompt + j < p.pool;
      g[r] = gradients_of_weight(p, first + image, first_prompt + j, inside);
      along[0] += g[r].along_key;
      along[1] += g[r].along_focus;
    }
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int x = r * kSecondThreads + dev::thread(), image = x / kPoolPrompts, j = x % kPoolPrompts;
      if (image < kImages) {
        dev::store_shared(&shared.numerator[image][j], g[r].numerator);
        dev::store_shared(&shared.square[image][j], g[r].square);
      }
    }
    dev::sync_block();
#pragma unroll
    for (int i = 0; i < kPoolImages; ++i) {
      const int image = i * kSecondWarps + dev::warp();
#pragma unroll
      for (int j = 0; j < kPoolPrompts; ++j) {
        numerator[j] += dev::load_shared(&shared.numerator[image][j]) * q[i];
        square[j] += dev::load_shared(&shared.square[image][j]) * (q[i] * q[i]);
      }
    }
  }
  if (p.batch == 0) dev::wait_for_previous_kernel();

  // The last steps' operands, before the sums: one warp per prompt.
  const int64_t m = first_prompt + dev::warp();
  const bool finishes = dev::warp() < kPoolPrompts && m < p.pool && c < p.channels;
  const int64_t at = m * p.channels + c;
  const T s = inside_or(finishes, p.focus + at, T(0));
  const T key = inside_or(finishes, p.keys + at, T(0));
  const T norm = inside_or(finishes, p.key_norm + m, T(1));
#pragma unroll
  for (int j = 0; j < kPoolPrompts; ++j) {
    dev::store_shared(&shared.sum[dev::warp()][2 * j][dev::lane()], numerator[j]);
    dev::store_shared(&shared.sum[dev::warp()][2 * j + 1][dev::lane()], square[j]);
  }
#pragma unroll
  for (int mask = 16; mask >= kPoolPrompts; mask /= 2) {
    along[0] += dev::shuffle_xor(along[0], mask);
    along[1] += dev::shuffle_xor(along[1], mask);
  }
  if (dev::lane() < kPoolPrompts) {
    dev::store_shared(&shared.along[dev::warp()][0][dev::lane()], along[0]);
    dev::store_shared(&shared.along[dev::warp()][1][dev::lane()], along[1]);
  }
  dev::sync_block();
  if (!finishes) return;
  T total_numerator = 0, total_square = 0, along_key = 0, along_focus = 0;
#pragma unroll
  for (int w = 0; w < kSecondWarps; ++w) {
    total_numerator += dev::load_shared(&shared.sum[w][2 * dev::warp()][dev::lane()]);
    total_square += dev::load_shared(&shared.sum[w][2 * dev::warp() + 1][dev::lane()]);
    along_key += dev::load_shared(&shared.along[w][0][dev::warp()]);
    along_focus += dev::load_shared(&shared.along[w][1][dev::warp()]);
  }
  const bool clamped = norm < p.tiny;
  const T divisor = clamped ? p.tiny : norm;
  const T u = key / divisor;
  p.grad_attention[at] = s * (total_numerator * u + T(2) * s * total_square - along_focus);
  p.grad_keys[at] = (total_numerator * s - (clamped ? T(0) : u * along_key)) / divisor;
}

inline constexpr int kQueryImages = 4;  // of one block in grad_of_query

template <typename T>
inline constexpr int kQueryPool = 80 / sizeof(T);  // prompts at a time

template <typename T>
struct alignas(16) QueryShared {
  T numerator[kQueryPool<T>][kQueryImages], square[kQueryPool<T>][kQueryImages];
};

// Four images, one channel per thread: gradient of the query.
template <typename T>
PUMA_DEVICE void grad_of_query(const PromptGradientArguments<T>& p, int64_t first_image, int64_t first_channel) {
  constexpr int kPool = kQueryPool<T>;
  auto& shared = *reinterpret_cast<QueryShared<T>*>(dev::shared_memory());
  const int64_t c = first_channel + dev::thread();
  const bool inside = c < p.channels;
  const int images = count_up_to<kQueryImages>(p.batch - first_image);
  T q[kQueryImages], numerator[kQueryImages] = {}, square[kQueryImages] = {};
#pragma unroll
  for (int i = 0; i < kQueryImages; ++i) {
    q[i] = inside_or(i < images && inside, p.query + (first_image + i) * p.channels + c, T(0));
  }
  dev::wait_for_previous_kernel();
  for (int64_t first = 0; first < p.pool; first += kPool) {
    const int count = count_up_to<kPool>(p.pool - first);
    T s[kPool], su[kPool];
    int64_t at = first * p.channels + c;
#pragma unroll
    for (int j = 0; j < kPool; ++j, at += p.channels) {
      s[j] = inside_or(j < count && inside, p.focus + at, T(0));
      su[j] = inside_or(j < count && inside, p.focused_keys + at, T(0));
    }
    if (first > 0) dev::sync_block();
    if (dev::thread() < kPool * kQueryImages) {
      const int i = dev::thread() / kPool, j = dev::thread() % kPool;
      const bool wanted = i < images && j < count;
      const WeightGradients<T> g = gradients_of_weight(p, first_image + i, first + j, wanted);
      dev::store_shared(&shared.numerator[j][i], g.numerator);
      dev::store_shared(&shared.square[j][i], g.square);
    }
    dev::sync_block();
#pragma unroll
    for (int j = 0; j < kPool; ++j) {
#pragma unroll
      for (int i = 0; i < kQueryImages; ++i) {
        numerator[i] += dev::load_shared(&shared.numerator[j][i]) * su[j];
        square[i] += dev::load_shared(&shared.square[j][i]) * (s[j] * s[j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kQueryImages; ++i) {
    if (i < images && inside) {
      p.grad_query[(first_image + i) * p.channels + c] = numerator[i] + T(2) * q[i] * square[i];
    }
  }
}

template <typename T>
inline constexpr int kSecondSharedBytes =
    static_cast<int>(sizeof(PoolShared<T>) > sizeof(QueryShared<T>) ? sizeof(PoolShared<T>) : sizeof(QueryShared<T>));

// Backward, launch 2: two kinds of blocks.
template <typename T>
PUMA_DEVICE void prompt_gradient_second(const PromptGradientArguments<T>& p, const PromptGradientGrid& grid) {
  int block = static_cast<int>(dev::block());
  if (block < grid.pool_blocks) {
    const int64_t first_channel = static_cast<int64_t>(block % grid.pool_channel_blocks) * 32;
    grad_of_pool(p, block / grid.pool_channel_blocks * kPoolPrompts, first_channel);
    return;
  }
  block -= grid.pool_blocks;
  const int64_t first_channel = static_cast<int64_t>(block % grid.query_channel_blocks) * kSecondThreads;
  grad_of_query(p, static_cast<int64_t>(block / grid.query_channel_blocks) * kQueryImages, first_channel);
}

}  // namespace puma
