// The stochastic adapter on the CPU. Only kept samples are computed: their rows are cut into blocks that fit the cache,
// and each thread takes a block through both GEMMs and the element-wise steps around them before it takes the next.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "gemm.h"

namespace puma {
namespace {

// Consecutive rows of kept samples in the (B*N, C) tensors; `packed` is where they start in `hidden`.
struct Block {
  int64_t row, rows, packed;
};

struct Plan {
  int64_t tokens_per_sample;
  bool few_sizes;
  std::vector<double> factor;   // per sample: gate * scale
  std::vector<Block> kept;      // cache-sized
  std::vector<Block> dropped;   // whole runs of dropped samples
};

// Bytes of one (rows, C) operand. Two of them share the second-level cache; a product of half types costs so much
// before it starts that fewer, larger ones win though they leave that cache.
template <class T>
constexpr int64_t kBlockBytes = (sizeof(T) == 2 ? 3072 : 384) * 1024;

// oneDNN, which multiplies half types, builds a program for each product and number of rows that it meets, and keeps it
// (half a MiB). Random gates of so many samples would show it many numbers.
constexpr int64_t kManySamples = 64;

void add_run(std::vector<Block>& blocks, int64_t row, int64_t rows, int64_t packed, int64_t block_rows) {
  const int64_t count = (rows + block_rows - 1) / block_rows;
  for (int64_t i = 0; i < count; ++i) {  // equal shares: no small rest
    const int64_t begin = rows * i / count, end = rows * (i + 1) / count;
    blocks.push_back({row + begin, end - begin, packed + begin});
  }
}

// The same at the borders of samples, in powers of two of them: few sizes.
void add_samples(
    std::vector<Block>& blocks, int64_t row, int64_t samples, int64_t tokens, int64_t packed, int64_t block_rows) {
  while (samples > 0) {
    int64_t count = 1;
    while (2 * count <= samples && 2 * count * tokens <= block_rows) count *= 2;
    add_run(blocks, row, count * tokens, packed, block_rows);
    row += count * tokens;
    packed += count * tokens;
    samples -= count;
  }
}

template <class T>
Plan make_plan(const std::optional<Tensor>& gate, double scale, int64_t samples, int64_t tokens, int64_t width) {
  using Gate = accumulate_t<T>;  // float64 next to float64 tokens, else float32
  // Some blocks for each thread, so that shares come out even.
  const int64_t share = samples * tokens / (4 * torch::stable::get_num_threads());
  const int64_t block_rows =
      std::max<int64_t>(16, std::min<int64_t>(share, kBlockBytes<T> / (width * static_cast<int64_t>(sizeof(T)))));
  const bool few_sizes = sizeof(T) == 2 && gate.has_value() && samples >= kManySamples;
  Plan plan{tokens, few_sizes, std::vector<double>(samples, static_cast<Gate>(scale)), {}, {}};
  std::optional<Tensor> held;
  const Gate* gates = nullptr;
  if (gate.has_value()) {
    STD_TORCH_CHECK(
        gate->scalar_type() == scalar_type<Gate>() && gate->numel() == samples,
        "puma::stochastic_adapter: gate must hold one float32 per sample (float64 next to float64 tokens)");
    held = as_contiguous(*gate);
    gates = const_data<Gate>(*held);
    for (int64_t b = 0; b < samples; ++b) plan.factor[b] = gates[b] * static_cast<Gate>(scale);
  }
  if (tokens == 0) return plan;
  const auto keeps = [&](int64_t b) { return gates == nullptr || gates[b] != 0; };
  int64_t packed = 0;
  for (int64_t b = 0; b < samples;) {
    int64_t end = b + 1;
    while (end < samples && keeps(end) == keeps(b)) ++end;
    const int64_t rows = (end - b) * tokens;
    if (keeps(b)) {
      if (few_sizes && end - b < samples) {
        add_samples(plan.kept, b * tokens, end - b, tokens, packed, block_rows);
      } else {
        add_run(plan.kept, b * tokens, rows, packed, block_rows);
      }
      packed += rows;
    } else {
      plan.dropped.push_back({b * tokens, rows, 0});
    }
    b = end;
  }
  return plan;
}

// Calls body(part, parts) once per thread, on one thread if there is little to do. Parts are fixed by the sizes and the
// thread count, so sums over them are reproducible.
template <class F>
void for_each_part(int64_t elements, const F& body) {
  constexpr int64_t kWorthAThread = 1 << 15;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = std::max<int64_t>(1, std::min(threads, elements / kWorthAThread));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, parts);
  });
}

// Index of the first kept block of a part; parts have about equally many rows.
int64_t first_block(const Plan& plan, int64_t part, int64_t parts) {
  if (plan.kept.empty()) return 0;
  const int64_t bound = (plan.kept.back().packed + plan.kept.back().rows) * part / parts;
  const auto found = std::partition_point(
      plan.kept.begin(), plan.kept.end(), [=](const Block& block) { return block.packed + block.rows / 2 < bound; });
  return found - plan.kept.begin();
}

int64_t most_rows(const std::vector<Block>& blocks) {
  int64_t rows = 0;
  for (const Block& block : blocks) rows = std::max(rows, block.rows);
  return rows;
}

// Uninitialised memory: every element is written before it is read.
template <class T>
std::unique_ptr<T[]> scratch(int64_t elements) {
  return std::unique_ptr<T[]>(new T[elements]);
}

// Calls body(first row in the block, rows, factor) for the stretch of each sample in the block.
template <class F>
void for_each_sample(const Plan& plan, const Block& block, const F& body) {
  for (int64_t done = 0; done < block.rows;) {
    const int64_t row = block.row + done, sample = row / plan.tokens_per_sample;
    const int64_t rows = std::min(block.rows - done, (sample + 1) * plan.tokens_per_sample - row);
    body(done, rows, plan.factor[sample]);
    done += rows;
  }
}

// Calls body(first element, elements) for this part's share of the dropped rows.
template <class F>
void for_each_dropped(const Plan& plan, int64_t width, int64_t part, int64_t parts, const F& body) {
  for (const Block& block : plan.dropped) {
    const int64_t begin = block.rows * part / parts, end = block.rows * (part + 1) / parts;
    body((block.row + begin) * width, (end - begin) * width);
  }
}

// The frozen branch's output, in the residual's type R or in the tokens' type T; both null: there is none.
template <class R, class T>
struct Branch {
  const R* wide = nullptr;
  const T* narrow = nullptr;

  Branch(const std::optional<Tensor>& tensor, int64_t elements) {
    if (!tensor.has_value()) return;
    const ScalarType dtype = tensor->scalar_type();
    STD_TORCH_CHECK(
        tensor->numel() == elements && (dtype == scalar_type<R>() || dtype == scalar_type<T>()),
        "puma::stochastic_adapter: branch must have residual's shape, and its dtype or that of tokens");
    if (dtype == scalar_type<R>()) {
      wide = const_data<R>(*tensor);
    } else {
      narrow = const_data<T>(*tensor);
    }
  }
};

// out = residual + branch + factor * product.
template <class R, class T>
void add_kept(
    R* out, const R* residual, const Branch<R, T>& branch, int64_t offset, const T* product, double factor_value,
    int64_t n) {
  const auto factor = static_cast<accumulate_t<T>>(factor_value);
  if (branch.wide != nullptr) {
    add_branch_scaled<R, R, T>(out + offset, residual + offset, branch.wide + offset, product, factor, n);
  } else if (branch.narrow != nullptr) {
    add_branch_scaled<R, T, T>(out + offset, residual + offset, branch.narrow + offset, product, factor, n);
  } else {
    add_scaled<R, T>(out + offset, residual + offset, product, factor, n);
  }
}

// out = residual + branch.
template <class R, class T>
void add_dropped(R* out, const R* residual, const Branch<R, T>& branch, int64_t offset, int64_t n) {
  if (branch.wide != nullptr) {
    add_scaled<R, R>(out + offset, residual + offset, branch.wide + offset, 1, n);
  } else if (branch.narrow != nullptr) {
    add_scaled<R, T>(out + offset, residual + offset, branch.narrow + offset, 1, n);
  } else {
    std::memcpy(static_cast<void*>(out + offset), residual + offset, static_cast<size_t>(n) * sizeof(R));
  }
}

template <class R, class T>
std::tuple<Tensor, Tensor> forward(
    const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
    const std::optional<Tensor>& gate, const std::optional<Tensor>& branch_tensor, double scale, bool save_hidden) {
  const int64_t samples = residual.size(0), length = residual.size(1), width = residual.size(2), rank = down.size(1);
  const Plan plan = make_plan<T>(gate, scale, samples, length, width);
  const Tensor out = empty<3>({samples, length, width}, scalar_type<R>());
  const Tensor hidden = empty<2>({save_hidden ? samples * length : 0, rank}, scalar_type<T>());

  R* const out_data = mutable_data<R>(out);
  T* const hidden_data = mutable_data<T>(hidden);
  const R* const residual_data = const_data<R>(residual);
  const T* const tokens_data = const_data<T>(tokens);
  const Branch<R, T> branch(branch_tensor, samples * length * width);
  const Tensor down_matrix = matrix(const_data<T>(down), width, rank);
  const Tensor up_matrix = matrix(const_data<T>(up), rank, width);
  const int64_t rows = most_rows(plan.kept);

  for_each_part(samples * length * width, [&](int64_t part, int64_t parts) {
    const auto product = scratch<T>(rows * width);
    const auto unsaved = scratch<T>(save_hidden ? 0 : rows * rank);
    for (int64_t i = first_block(plan, part, parts); i < first_block(plan, part + 1, parts); ++i) {
      const Block& block = plan.kept[i];
      T* const h = save_hidden ? hidden_data + block.packed * rank : unsaved.get();
      const Tensor h_matrix = matrix(h, block.rows, rank);
      mm(h_matrix, matrix(tokens_data + block.row * width, block.rows, width), down_matrix);
      relu(h, block.rows * rank);
      mm(matrix(product.get(), block.rows, width), h_matrix, up_matrix);
      for_each_sample(plan, block, [&](int64_t first, int64_t n, double factor) {
        const int64_t offset = (block.row + first) * width;
        add_kept<R, T>(
            out_data, residual_data, branch, offset, product.get() + first * width, factor, n * width);
      });
    }
    for_each_dropped(plan, width, part, parts, [&](int64_t offset, int64_t n) {
      add_dropped<R, T>(out_data, residual_data, branch, offset, n);
    });
  });
  return {out, hidden};
}

// A contiguous matrix, transposed. A copy, where there are to be few programs: to oneDNN the backward's products then
// are those of the forward.
template <class T>
Tensor transposed_operand(const Tensor& matrix, const Plan& plan) {
  const Tensor view = transposed(const_data<T>(matrix), matrix.size(0), matrix.size(1));
  return plan.few_sizes ? torch::stable::contiguous(view) : view;
}

// Sums of one thread over its blocks. Half types are summed in float: each block's product is rounded once, then added.
template <class T>
struct WeightSum {
  using Sum = accumulate_t<T>;
  int64_t rows, columns;
  std::vector<Sum> sum;
  std::unique_ptr<T[]> product;

  WeightSum(int64_t rows, int64_t columns)
      : rows(rows),
        columns(columns),
        sum(rows * columns),
        product(scratch<T>(std::is_same_v<T, Sum> ? 0 : rows * columns)) {}

  void add(const Tensor& a, const Tensor& b) {
    if constexpr (std::is_same_v<T, Sum>) {
      mm_accumulate(matrix(sum.data(), rows, columns), a, b);
    } else {
      mm(matrix(product.get(), rows, columns), a, b);
      accumulate(sum.data(), product.get(), rows * columns);
    }
  }
};

template <class T>
void reduce(std::vector<std::optional<WeightSum<T>>>& parts, T* out, int64_t elements) {
  std::vector<accumulate_t<T>> total(elements);
  for (const auto& part : parts) {
    if (part.has_value()) accumulate<accumulate_t<T>>(total.data(), part->sum.data(), elements);
  }
  convert(out, total.data(), elements);
}

template <class R, class T>
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& tokens, const Tensor& down, const Tensor& up, const std::optional<Tensor>& gate,
    const Tensor& hidden, double scale_value, bool need_tokens, bool need_weights) {
  const int64_t samples = grad.size(0), length = grad.size(1), width = grad.size(2), rank = down.size(1);
  const Plan plan = make_plan<T>(gate, scale_value, samples, length, width);
  constexpr ScalarType dtype = scalar_type<T>();
  const Tensor grad_tokens = need_tokens ? empty<3>({samples, length, width}, dtype) : empty<1>({0}, dtype);
  const Tensor grad_down = need_weights ? empty<2>({width, rank}, dtype) : empty<1>({0}, dtype);
  const Tensor grad_up = need_weights ? empty<2>({rank, width}, dtype) : empty<1>({0}, dtype);

  const R* const grad_data = const_data<R>(grad);
  const T* const tokens_data = const_data<T>(tokens);
  const T* const hidden_data = const_data<T>(hidden);
  T* const grad_tokens_data = mutable_data<T>(grad_tokens);
  const Tensor down_transposed = transposed_operand<T>(down, plan);
  const Tensor up_transposed = transposed_operand<T>(up, plan);
  const int64_t rows = most_rows(plan.kept);
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<std::optional<WeightSum<T>>> down_sums(threads), up_sums(threads);

  for_each_part(samples * length * width, [&](int64_t part, int64_t parts) {
    const int64_t begin = first_block(plan, part, parts), end = first_block(plan, part + 1, parts);
    if (need_tokens) {
      for_each_dropped(plan, width, part, parts, [&](int64_t offset, int64_t n) {
        std::memset(static_cast<void*>(grad_tokens_data + offset), 0, static_cast<size_t>(n) * sizeof(T));
      });
    }
    if (begin == end) return;
    const auto delta = scratch<T>(rows * rank);
    const auto scaled_hidden = scratch<T>(need_weights ? rows * rank : 0);
    const auto narrow_grad = scratch<T>(std::is_same_v<R, T> ? 0 : rows * width);
    if (need_weights) {
      down_sums[part].emplace(width, rank);
      up_sums[part].emplace(rank, width);
    }
    for (int64_t i = begin; i < end; ++i) {
      const Block& block = plan.kept[i];
      const T* g = nullptr;
      if constexpr (std::is_same_v<R, T>) {
        g = grad_data + block.row * width;
      } else {
        convert(narrow_grad.get(), grad_data + block.row * width, block.rows * width);
        g = narrow_grad.get();
      }
      const T* const h = hidden_data + block.packed * rank;
      const T* const x = tokens_data + block.row * width;
      const Tensor g_matrix = matrix(g, block.rows, width), delta_matrix = matrix(delta.get(), block.rows, rank);
      // The factor goes into the narrow (rows, r) matrices: delta for tokens and down, hidden for up.
      mm(delta_matrix, g_matrix, up_transposed);
      for_each_sample(plan, block, [&](int64_t first, int64_t n, double factor) {
        const auto f = static_cast<accumulate_t<T>>(factor);
        mask_scaled(delta.get() + first * rank, h + first * rank, f, n * rank);
        if (need_weights) scale(scaled_hidden.get() + first * rank, h + first * rank, f, n * rank);
      });
      if (need_weights) {
        down_sums[part]->add(transposed(x, block.rows, width), delta_matrix);
        up_sums[part]->add(transposed(scaled_hidden.get(), block.rows, rank), g_matrix);
      }
      if (need_tokens) {
        mm(matrix(grad_tokens_data + block.row * width, block.rows, width), delta_matrix, down_transposed);
      }
    }
  });
  if (need_weights) {
    reduce(down_sums, mutable_data<T>(grad_down), width * rank);
    reduce(up_sums, mutable_data<T>(grad_up), rank * width);
  }
  return {grad_tokens, grad_down, grad_up};
}

// Calls body<R, T>() for the residual's and the tokens' dtype.
template <class F>
auto dispatch(ScalarType residual, ScalarType tokens, const F& body) {
  const bool wide = residual == ScalarType::Float;
  switch (tokens) {
    case ScalarType::Float:
      return body(float{}, float{});
    case ScalarType::Double:
      return body(double{}, double{});
    case ScalarType::BFloat16:
      return wide ? body(float{}, bf16{}) : body(bf16{}, bf16{});
    case ScalarType::Half:
      return wide ? body(float{}, fp16{}) : body(fp16{}, fp16{});
    default:
      STD_TORCH_CHECK(false, "puma::stochastic_adapter: tokens must be float32, float64, bfloat16 or float16");
  }
}

std::tuple<Tensor, Tensor> stochastic_adapter(
    const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
    const std::optional<Tensor>& gate, const std::optional<Tensor>& branch, double scale, bool save_hidden) {
  std::optional<Tensor> dense_branch;
  if (branch.has_value()) dense_branch = as_contiguous(*branch);
  return dispatch(residual.scalar_type(), tokens.scalar_type(), [&](auto r, auto t) {
    return forward<decltype(r), decltype(t)>(
        as_contiguous(residual), as_contiguous(tokens), as_contiguous(down), as_contiguous(up), gate,
        dense_branch, scale, save_hidden);
  });
}

std::tuple<Tensor, Tensor, Tensor> stochastic_adapter_backward(
    const Tensor& grad, const Tensor& tokens, const Tensor& down, const Tensor& up, const std::optional<Tensor>& gate,
    const Tensor& hidden, double scale, bool need_tokens, bool need_weights) {
  return dispatch(grad.scalar_type(), tokens.scalar_type(), [&](auto r, auto t) {
    return backward<decltype(r), decltype(t)>(
        as_contiguous(grad), as_contiguous(tokens), as_contiguous(down), as_contiguous(up), gate, as_contiguous(hidden),
        scale, need_tokens, need_weights);
  });
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CPU, m) {
  m.impl("stochastic_adapter", TORCH_BOX(&puma::stochastic_adapter));
  m.impl("stochastic_adapter_backward", TORCH_BOX(&puma::stochastic_adapter_backward));
}
