#include "attention_tiles.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "panel_products.h"
#include "simd.h"
#include "softmax_rows.h"
#include "tile.h"

namespace puma {
namespace {

// Bytes of a block of queries' weights in the backward: they and their gradients stay in the second-level cache.
constexpr int64_t kBlockBytes = 256 * 1024;

// Rows that products are added up in. Those of float32 lie where they are wanted, others in memory beside it until
// they are rounded.
struct Sums {
  float* first;
  int64_t stride;
};
PUMA_INLINE Sums sums_of(
    float* rows, int64_t stride, const Lines<float>& /*memory*/, int64_t /*at*/, int64_t /*columns*/) {
  return {rows, stride};
}
PUMA_INLINE Sums sums_of(bf16* /*rows*/, int64_t /*stride*/, const Lines<float>& memory, int64_t at, int64_t columns) {
  return {memory.get() + at, columns};
}

template <int bytes, class T>
PUMA_INLINE void round_sums(T* out, int64_t stride, const Sums& sums, int64_t rows, int64_t columns) {
  using V = typename Vector<float, bytes>::type;
  constexpr int W = bytes / static_cast<int>(sizeof(float));
  if constexpr (!std::is_same_v<T, float>) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < columns; c += W) {
        store(out + row * stride + c, load<V>(sums.first + row * sums.stride + c));
      }
    }
  }
}

template <int bytes, int I, int J, class T>
PUMA_INLINE void forward_head(const AttentionForward<T>& a, int64_t head, bool is_last) {
  constexpr int W = Tile<float, bytes, I, J>::W, P = J * W;
  const int64_t tokens = a.sizes.tokens, width = a.sizes.head_dim;
  const int64_t row_in = a.sizes.qkv_row(), row_out = a.sizes.out_row();
  const int64_t steps = (tokens + I - 1) / I, key_panels = (tokens + P - 1) / P, panels = (width + P - 1) / P;
  RowsAhead ahead(
      tokens, width * static_cast<int64_t>(sizeof(T)), steps * (key_panels * (width / P) + panels * (tokens / P)));
  if (!is_last) {
    for (const int64_t part : {1, 2, 0}) ahead.add(a.qkv + a.sizes.in_qkv(head + 1, part), row_in);
    ahead.add(a.out + a.sizes.in_out(head + 1), row_out);
  }
  pack_turned<bytes, P>(a.keys_turned.get(), a.qkv + a.sizes.in_qkv(head, 1), row_in, tokens, width);
  pack<bytes, P>(a.values.get(), a.qkv + a.sizes.in_qkv(head, 2), row_in, tokens, tokens, width, 1);
  const T* const queries = a.qkv + a.sizes.in_qkv(head, 0);
  float* const logsumexp = a.logsumexp + head * tokens;
  float largest[W], sum[W];
  for (int64_t row = 0; row < tokens; row += I) {
    const int64_t rows = std::min<int64_t>(I, tokens - row);
    pack<bytes, P>(a.queries.get(), queries + row * row_in, row_in, rows, I, width, a.scale);
    product<bytes, I, J>(
        a.weights.get(), P, P * I, a.queries.get(), P * I, a.keys_turned.get(), width, tokens, ahead);
    exponentials<bytes, I, J>(a.weights.get(), tokens, largest, sum);
    for (int64_t i = 0; i < rows; ++i) {
      logsumexp[row + i] = largest[i] + std::log(sum[i]);
      sum[i] = 1 / sum[i];
    }
    T* const out = a.out + a.sizes.in_out(head) + row * row_out;
    const Sums sums = sums_of(out, row_out, a.sums, 0, width);
    scaled_product<bytes, I, J>(
        sums.first, sums.stride, rows, sum, a.weights.get(), a.values.get(), tokens, width, ahead);
    round_sums<bytes>(out, row_out, sums, rows, width);
  }
}

template <int bytes, int I, int J, class T>
PUMA_INLINE void backward_head(const AttentionBackward<T>& a, int64_t head, bool is_last) {
  constexpr int P = Tile<float, bytes, I, J>::kColumns;
  const int64_t tokens = a.sizes.tokens, width = a.sizes.head_dim;
  const int64_t row_in = a.sizes.qkv_row(), row_out = a.sizes.out_row();
  const int64_t steps = (tokens + I - 1) / I, key_panels = (tokens + P - 1) / P, panels = (width + P - 1) / P;
  RowsAhead ahead(
      tokens, width * static_cast<int64_t>(sizeof(T)),
      steps * (2 * key_panels * (width / P) + panels * (tokens / P) + 2 * panels * (tokens / kBetweenFetches)));
  if (!is_last) {
    for (const int64_t part : {1, 2, 0}) ahead.add(a.qkv + a.sizes.in_qkv(head + 1, part), row_in);
    ahead.add(a.grad + a.sizes.in_out(head + 1), row_out);
    for (const int64_t part : {0, 2, 1}) ahead.add(a.grad_qkv + a.sizes.in_qkv(head + 1, part), row_in);
  }
  const auto part_of = [&](auto* tensor, int64_t part) { return tensor + a.sizes.in_qkv(head, part); };
  pack_turned<bytes, P>(a.keys_turned.get(), part_of(a.qkv, 1), row_in, tokens, width);
  pack_turned<bytes, P>(a.values_turned.get(), part_of(a.qkv, 2), row_in, tokens, width);
  pack<bytes, P>(a.keys.get(), part_of(a.qkv, 1), row_in, tokens, tokens, width, 1);
  Sums sums[3];
  for (int64_t part = 0; part < 3; ++part) {
    sums[part] = sums_of(part_of(a.grad_qkv, part), row_in, a.sums, part * tokens * width, width);
  }
  float factor[I];
  std::fill_n(factor, I, a.scale);
  const int64_t next = P * a.block_rows;
  for (int64_t first = 0; first < tokens; first += a.block_rows) {
    const int64_t block = std::min(a.block_rows, tokens - first);
    pack<bytes, P>(
        a.queries.get(), part_of(a.qkv, 0) + first * row_in, row_in, block, a.block_rows, width, a.scale);
    pack<bytes, P>(
        a.grads.get(), a.grad + a.sizes.in_out(head) + first * row_out, row_out, block, a.block_rows, width, 1);
    for (int64_t row = 0; row < block; row += I) {
      const int64_t rows = std::min<int64_t>(I, block - row);
      float* const weights = a.weights.get() + row * a.row_elements;
      float* const score_grads = a.score_grads.get() + row * a.row_elements;
      product<bytes, I, J>(
          weights, a.row_elements, P, a.queries.get() + row * P, next, a.keys_turned.get(), width, tokens, ahead);
      product<bytes, I, J>(
          score_grads, a.row_elements, P, a.grads.get() + row * P, next, a.values_turned.get(), width, tokens, ahead);
      softmax_backward<bytes, I, J>(
          weights, score_grads, a.score_grad_tile.get(), a.row_elements, rows, tokens,
          a.logsumexp + head * tokens + first + row);
      scaled_product<bytes, I, J>(
          sums[0].first + (first + row) * sums[0].stride, sums[0].stride, rows, factor, a.score_grad_tile.get(),
          a.keys.get(), tokens, width, ahead);
    }
    turned_product<bytes, I, J>(
        sums[2].first, sums[2].stride, first > 0, a.weights.get(), a.row_elements, tokens, a.grads.get(),
        a.block_rows, block, width, ahead);
    turned_product<bytes, I, J>(
        sums[1].first, sums[1].stride, first > 0, a.score_grads.get(), a.row_elements, tokens, a.queries.get(),
        a.block_rows, block, width, ahead);
  }
  for (int64_t part = 0; part < 3; ++part) {
    round_sums<bytes>(part_of(a.grad_qkv, part), row_in, sums[part], tokens, width);
  }
}

struct Kernels {
  void (*forward)(const AttentionForward<float>& attention, int64_t head, bool is_last);
  void (*backward)(const AttentionBackward<float>& attention, int64_t head, bool is_last);
  void (*forward_bf16)(const AttentionForward<bf16>& attention, int64_t head, bool is_last);
  void (*backward_bf16)(const AttentionBackward<bf16>& attention, int64_t head, bool is_last);

  void run(const AttentionForward<float>& a, int64_t head, bool is_last) const { forward(a, head, is_last); }
  void run(const AttentionBackward<float>& a, int64_t head, bool is_last) const { backward(a, head, is_last); }
  void run(const AttentionForward<bf16>& a, int64_t head, bool is_last) const { forward_bf16(a, head, is_last); }
  void run(const AttentionBackward<bf16>& a, int64_t head, bool is_last) const { backward_bf16(a, head, is_last); }
};

#define PUMA_KERNELS(NAME, BYTES, ...)                                                                \
  static_assert(kTileRows<BYTES> <= BYTES / 4 && kHeadDimMultiple % (BYTES / 4) == 0);                \
  static_assert(kLongestSum % (kTileVectors * BYTES / 4) == 0);                                       \
  __VA_ARGS__ void forward_##NAME(const AttentionForward<float>& a, int64_t head, bool is_last) {     \
    forward_head<BYTES, kTileRows<BYTES>, kTileVectors>(a, head, is_last);                            \
  }                                                                                                   \
  __VA_ARGS__ void backward_##NAME(const AttentionBackward<float>& a, int64_t head, bool is_last) {   \
    backward_head<BYTES, kTileRows<BYTES>, kTileVectors>(a, head, is_last);                           \
  }                                                                                                   \
  __VA_ARGS__ void forward_bf16_##NAME(const AttentionForward<bf16>& a, int64_t head, bool is_last) { \
    forward_head<BYTES, kTileRows<BYTES>, kTileVectors>(a, head, is_last);                            \
  }                                                                                                   \
  __VA_ARGS__ void backward_bf16_##NAME(                                                              \
      const AttentionBackward<bf16>& a, int64_t head, bool is_last) {                                 \
    backward_head<BYTES, kTileRows<BYTES>, kTileVectors>(a, head, is_last);                           \
  }                                                                                                   \
  constexpr Kernels NAME{forward_##NAME, backward_##NAME, forward_bf16_##NAME, backward_bf16_##NAME};

// kernels(): only where there are vectors.
PUMA_DEFINE_KERNELS(PUMA_KERNELS)

// Memory for (rows, columns) panels.
Lines<float> panels(int64_t rows, int64_t columns) {
  return lines<float>(rows * rounded_up(columns, tile_columns()));
}

// The same for left-hand sides, whose last tile may have rows that were never written: what is there by chance may be
// subnormal and slow.
Lines<float> zero_panels(int64_t rows, int64_t columns) {
  return zero_lines<float>(rows * rounded_up(columns, tile_columns()));
}

// The same for rows, with zeros behind the last column.
Lines<float> padded_rows(int64_t rows, int64_t row_elements, int64_t columns) {
  Lines<float> memory = lines<float>(rows * row_elements);
  for (int64_t row = 0; row < rows; ++row) {
    std::fill(memory.get() + row * row_elements + columns, memory.get() + (row + 1) * row_elements, 0.0F);
  }
  return memory;
}

template <class T>
Lines<float> sums_memory(int64_t elements) {
  return lines<float>(std::is_same_v<T, float> ? 0 : elements);
}

// Whole vectors and tiles; an odd number of cache lines, or all rows would share a few places in the cache.
int64_t row_elements_for(int64_t tokens) {
  constexpr int64_t kLineElements = 16;
  const int64_t needed = std::max(rounded_up(tokens, tile_rows()), rounded_up(tokens, tile_columns()));
  return (rounded_up(needed, kLineElements) / kLineElements | 1) * kLineElements;
}

// Equal shares of whole tiles.
int64_t block_rows_for(int64_t tokens) {
  const int64_t tile = tile_rows();
  const int64_t row_bytes = row_elements_for(tokens) * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::max(kBlockBytes / row_bytes, 2 * tile) / tile * tile;
  const int64_t blocks = (tokens + most - 1) / most;
  return rounded_up((tokens + blocks - 1) / blocks, tile);
}

}  // namespace

int64_t most_attention_tokens() {
  constexpr int64_t kMostTokens = 4096;  // scratch of some MiB
  return tile_rows() > 0 ? kMostTokens : 0;
}

bool attention_tiles_should_run_bf16() { return tile_rows() > 0 && instruction_set() != InstructionSet::amx; }

template <class T>
AttentionForward<T>::AttentionForward(
    const AttentionSizes& sizes, float scale, const T* qkv, T* out, float* logsumexp)
    : sizes(sizes), scale(scale), qkv(qkv), out(out), logsumexp(logsumexp),
      keys_turned(panels(sizes.head_dim, sizes.tokens)), values(panels(sizes.tokens, sizes.head_dim)),
      queries(zero_panels(tile_rows(), sizes.head_dim)), weights(zero_panels(tile_rows(), sizes.tokens)),
      sums(sums_memory<T>(tile_rows() * sizes.head_dim)) {}

template <class T>
void AttentionForward<T>::run(int64_t first, int64_t last) const {
  for (int64_t head = first; head < last; ++head) kernels().run(*this, head, head + 1 == last);
}

template <class T>
AttentionBackward<T>::AttentionBackward(
    const AttentionSizes& sizes, float scale, const T* grad, const T* qkv, const float* logsumexp, T* grad_qkv)
    : sizes(sizes), scale(scale), grad(grad), qkv(qkv), logsumexp(logsumexp), grad_qkv(grad_qkv),
      row_elements(row_elements_for(sizes.tokens)), block_rows(block_rows_for(sizes.tokens)),
      keys_turned(panels(sizes.head_dim, sizes.tokens)), values_turned(panels(sizes.head_dim, sizes.tokens)),
      keys(panels(sizes.tokens, sizes.head_dim)), queries(zero_panels(block_rows, sizes.head_dim)),
      grads(zero_panels(block_rows, sizes.head_dim)), weights(padded_rows(block_rows, row_elements, sizes.tokens)),
      score_grads(padded_rows(block_rows, row_elements, sizes.tokens)),
      score_grad_tile(zero_panels(tile_rows(), sizes.tokens)),
      sums(sums_memory<T>(3 * sizes.tokens * sizes.head_dim)) {}

template <class T>
void AttentionBackward<T>::run(int64_t first, int64_t last) const {
  for (int64_t head = first; head < last; ++head) kernels().run(*this, head, head + 1 == last);
}

template class AttentionForward<float>;
template class AttentionForward<bf16>;
template class AttentionBackward<float>;
template class AttentionBackward<bf16>;

}  // namespace puma
