// Which rows of the stochastic adapter a thread works on: the kept samples' rows, cut into blocks that fit the cache, and
// the runs of dropped samples.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "gemm.h"

namespace puma {

// Rows packed .. packed + rows of the kept samples, laid one behind the other. In the (B*N, C) tensors they begin at
// `row` and are neighbours there, or (`scattered`) lie sample by sample wherever these are.
struct Block {
  int64_t packed, rows, row;
  bool scattered;
};

struct Run {
  int64_t row, rows;
};

struct Plan {
  int64_t tokens_per_sample;
  bool few_sizes;
  std::vector<double> factor;          // per sample: gate * scale
  std::vector<int64_t> kept_samples;
  std::vector<Block> kept;             // cache-sized
  std::vector<Run> dropped;            // whole runs of dropped samples

  int64_t samples() const { return static_cast<int64_t>(factor.size()); }
};

// Bytes of one (rows, C) operand. Two of them share the second-level cache; for half types fewer, larger products win
// though they leave it.
template <class T>
constexpr int64_t kBlockBytes = (sizeof(T) == 2 ? 3072 : 384) * 1024;

// Neighbouring rows, cut into equal shares: no small rest.
void add_run(std::vector<Block>& blocks, int64_t row, int64_t rows, int64_t packed, int64_t block_rows);
// All kept samples, in powers of two of them: each product of half types costs so much before it starts that few, large
// ones win though rows are gathered for them; and oneDNN, which multiplies, builds a program for each number of rows
// that it meets and keeps it (half a MiB), so there are few sizes.
void add_samples(Plan& plan, int64_t block_rows);
// Index of the first kept block of a part; parts have about equally many rows.
int64_t first_block(const Plan& plan, int64_t part, int64_t parts);
// Rows of the largest block.
int64_t most_rows(const std::vector<Block>& blocks);
// Rows of the largest scattered block: what a buffer for `gathered` needs.
int64_t most_scattered_rows(const std::vector<Block>& blocks);

template <class T>
Plan make_plan(const std::optional<Tensor>& gate, double scale, int64_t samples, int64_t tokens, int64_t width) {
  using Gate = accumulate_t<T>;  // float64 next to float64 tokens, else float32
  // Some blocks for each thread, so that shares come out even.
  const int64_t share = samples * tokens / (4 * torch::stable::get_num_threads());
  const int64_t block_rows =
      std::max<int64_t>(16, std::min<int64_t>(share, kBlockBytes<T> / (width * static_cast<int64_t>(sizeof(T)))));
  const bool few_sizes = sizeof(T) == 2 && gate.has_value();
  Plan plan{tokens, few_sizes, std::vector<double>(samples, static_cast<Gate>(scale)), {}, {}, {}};
  std::optional<Tensor> held;
  const Gate* gates = nullptr;
  if (gate.has_value()) {
    held = as_contiguous(*gate);
    gates = const_data<Gate>(*held);
    for (int64_t b = 0; b < samples; ++b) plan.factor[b] = gates[b] * static_cast<Gate>(scale);
  }
  if (tokens == 0) return plan;
  const auto keeps = [&](int64_t b) { return gates == nullptr || gates[b] != 0; };
  for (int64_t b = 0; b < samples;) {
    int64_t end = b + 1;
    while (end < samples && keeps(end) == keeps(b)) ++end;
    if (keeps(b)) {
      const int64_t packed = static_cast<int64_t>(plan.kept_samples.size()) * tokens;
      for (int64_t kept = b; kept < end; ++kept) plan.kept_samples.push_back(kept);
      if (!plan.few_sizes) add_run(plan.kept, b * tokens, (end - b) * tokens, packed, block_rows);
    } else {
      plan.dropped.push_back({b * tokens, (end - b) * tokens});
    }
    b = end;
  }
  if (plan.few_sizes) add_samples(plan, block_rows);
  return plan;
}

// Calls body(part, parts) once per thread, on one thread if there is little to do. Parts are fixed by the sizes and the
// thread count, so sums over them are reproducible.
template <class F>
void for_each_part(int64_t elements, const F& body) {
  constexpr int64_t kWorthAThread = 1 << 15;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = std::max<int64_t>(1, std::min(threads, elements / kWorthAThread));
  if (parts == 1) return body(int64_t{0}, parts);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, parts);
  });
}

// Calls body(first row in the block, rows, first row in the whole tensors, factor) for the stretch of each sample in
// the block.
template <class F>
void for_each_sample(const Plan& plan, const Block& block, const F& body) {
  const int64_t tokens = plan.tokens_per_sample;
  for (int64_t done = 0; done < block.rows;) {
    const int64_t packed = block.packed + done, rank = packed / tokens, token = packed - rank * tokens;
    const int64_t rows = std::min(block.rows - done, tokens - token), sample = plan.kept_samples[rank];
    body(done, rows, sample * tokens + token, plan.factor[sample]);
    done += rows;
  }
}

// The block's rows of a (B*N, width) tensor: where they are if they are neighbours there, else in `buffer`.
template <class T>
const T* gathered(const Plan& plan, const Block& block, const T* source, T* buffer, int64_t width) {
  if (!block.scattered) return source + block.row * width;
  for_each_sample(plan, block, [&](int64_t first, int64_t n, int64_t row, double) {
    const auto bytes = static_cast<size_t>(n * width) * sizeof(T);
    std::memcpy(static_cast<void*>(buffer + first * width), source + row * width, bytes);
  });
  return buffer;
}

// Calls body(first row, rows) for this part's share of the dropped rows, run by run.
template <class F>
void for_each_dropped(const Plan& plan, int64_t part, int64_t parts, const F& body) {
  int64_t all = 0, before = 0;
  for (const Run& run : plan.dropped) all += run.rows;
  const int64_t begin = all * part / parts, end = all * (part + 1) / parts;
  for (const Run& run : plan.dropped) {
    const int64_t first = std::max(begin - before, int64_t{0}), last = std::min(end - before, run.rows);
    if (first < last) body(run.row + first, last - first);
    before += run.rows;
  }
}

}  // namespace puma
