// The stochastic adapter on the CPU. Only kept samples are computed: their rows are cut into blocks that fit the cache,
// and each thread takes a block through both GEMMs and the element-wise steps around them before it takes the next.
// Most sizes and types go other ways where there are vectors, products of pairs or a matrix unit: vector_adapter.h,
// pair_adapter.h, amx_adapter.h.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../arguments.h"
#include "amx_adapter.h"
#include "gemm.h"
#include "in_steps.h"
#include "kept_rows.h"
#include "lines.h"
#include "pair_adapter.h"
#include "vector_adapter.h"
#include "weight_sums.h"

namespace puma {
namespace {

// The frozen branch's output, in the residual's type R or in the tokens' type T; both null: there is none.
template <class R, class T>
struct Branch {
  const R* wide = nullptr;
  const T* narrow = nullptr;

  explicit Branch(const std::optional<Tensor>& tensor) {
    if (!tensor.has_value()) return;
    if (has_type(*tensor, scalar_type<R>())) {
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

// Names an adapter to a function.
template <class Adapter>
struct Type {
  using type = Adapter;
};

// The weights, contiguous and in T.
template <class T>
Tensor in_type(const Tensor& weights) {
  const Tensor dense = as_contiguous(weights);
  if (has_type(dense, scalar_type<T>())) return dense;
  const Tensor converted = empty({dense.size(0), dense.size(1)}, scalar_type<T>());
  convert(mutable_data<T>(converted), const_data<accumulate_t<T>>(dense), dense.numel());
  return converted;
}

// hidden: where the kept samples' is to be left, or null.
template <class R, class T>
Tensor forward(
    const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
    const std::optional<Tensor>& gate, const std::optional<Tensor>& branch_tensor, double scale, T* hidden) {
  const int64_t samples = residual.size(0), length = residual.size(1), width = residual.size(2), rank = down.size(1);
  const Plan plan = make_plan<T>(gate, scale, samples, length, width);
  const Tensor out = empty({samples, length, width}, scalar_type<R>());
  R* const out_data = mutable_data<R>(out);
  const R* const residual_data = const_data<R>(residual);
  const T* const tokens_data = const_data<T>(tokens);
  const Branch<R, T> branch(branch_tensor);
  const auto drop = [&](int64_t row, int64_t n) {
    add_dropped<R, T>(out_data, residual_data, branch, row * width, n * width);
  };
  const auto in_steps = [&](auto adapter) {
    forward_in_steps<typename decltype(adapter)::type>(
        plan, drop, const_data<T>(down), const_data<T>(up), width, rank, tokens_data, residual_data, branch.wide,
        branch.narrow, out_data, hidden);
    return out;
  };
#if PUMA_HAS_AMX
  if constexpr (std::is_same_v<T, bf16>) {
    if (amx_serves(width, rank)) return in_steps(Type<AmxForward<R>>{});
  }
#endif
#if PUMA_HAS_BF16
  if constexpr (std::is_same_v<T, bf16>) {
    if (pairs_serve(width, rank)) return in_steps(Type<PairForward<R>>{});
  }
#endif
  if constexpr (!std::is_same_v<T, double>) {
    if (vectors_serve(width, rank)) return in_steps(Type<VectorForward<R, T>>{});
  }
  const T* const down_data = const_data<T>(down);
  const T* const up_data = const_data<T>(up);
  const int64_t rows = most_rows(plan.kept);

  for_each_part(samples * length * width, [&](int64_t part, int64_t parts) {
    // Also for the activation, where it is not to be left.
    const auto product = lines<T>(rows * (width + (hidden == nullptr ? rank : 0)));
    T* const unsaved = product.get() + rows * width;
    for (int64_t i = first_block(plan, part, parts); i < first_block(plan, part + 1, parts); ++i) {
      const Block& block = plan.kept[i];
      T* const h = hidden == nullptr ? unsaved : hidden + block.packed * rank;
      // The gathered tokens' place is that of the second product.
      const T* const x = gathered(plan, block, tokens_data, product.get(), width);
      mm(h, x, down_data, block.rows, width, rank);
      relu(h, block.rows * rank);
      mm(product.get(), h, up_data, block.rows, rank, width);
      for_each_sample(plan, block, [&](int64_t first, int64_t n, int64_t row, double factor) {
        add_kept<R, T>(
            out_data, residual_data, branch, row * width, product.get() + first * width, factor, n * width);
      });
    }
    for_each_dropped(plan, part, parts, drop);
  });
  return out;
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
  Sum* sum;
  int64_t rows, columns;
  Lines<T> product;

  WeightSum(Sum* sum, int64_t rows, int64_t columns)
      : sum(sum),
        rows(rows),
        columns(columns),
        product(lines<T>(std::is_same_v<T, Sum> ? 0 : rows * columns)) {}

  void add(const Tensor& a, const Tensor& b) {
    if constexpr (std::is_same_v<T, Sum>) {
      mm_accumulate(matrix(sum, rows, columns), a, b);
    } else {
      mm(matrix(product.get(), rows, columns), a, b);
      accumulate(sum, product.get(), rows * columns);
    }
  }
};

template <class R, class T>
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& tokens, const Tensor& down_in, const Tensor& up_in,
    const std::optional<Tensor>& gate, const Tensor& hidden, double scale_value, bool need_tokens, bool need_weights) {
  const int64_t samples = grad.size(0), length = grad.size(1), width = grad.size(2), rank = down_in.size(1);
  const Plan plan = make_plan<T>(gate, scale_value, samples, length, width);
  constexpr ScalarType dtype = scalar_type<T>();
  const ScalarType weights_dtype = down_in.scalar_type();
  const Tensor down = in_type<T>(down_in), up = in_type<T>(up_in);
  const Tensor grad_tokens = need_tokens ? empty({samples, length, width}, dtype) : empty({0}, dtype);
  const Tensor grad_down = need_weights ? empty({width, rank}, weights_dtype) : empty({0}, weights_dtype);
  const Tensor grad_up = need_weights ? empty({rank, width}, weights_dtype) : empty({0}, weights_dtype);

  const R* const grad_data = const_data<R>(grad);
  const T* const tokens_data = const_data<T>(tokens);
  const T* const hidden_data = const_data<T>(hidden);
  T* const grad_tokens_data = mutable_data<T>(grad_tokens);
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<Lines<accumulate_t<T>>> down_sums(threads), up_sums(threads);
  const auto drop = [&](int64_t row, int64_t n) {
    if (!need_tokens) return;
    std::memset(static_cast<void*>(grad_tokens_data + row * width), 0, static_cast<size_t>(n * width) * sizeof(T));
  };
  const auto in_steps = [&](auto adapter) {
    using Adapter = typename decltype(adapter)::type;
    backward_in_steps<Adapter>(
        plan, drop, const_data<T>(down), const_data<T>(up), width, rank, need_weights, down_sums, up_sums, grad_data,
        tokens_data, hidden_data, need_tokens ? grad_tokens_data : nullptr);
    if (need_weights) {
      add_up<T>(grad_down, down_sums, {rank, width, Adapter::strip(width), true});
      add_up<T>(grad_up, up_sums, {rank, width, Adapter::strip(width), false});
    }
    return std::tuple{grad_tokens, grad_down, grad_up};
  };
#if PUMA_HAS_AMX
  if constexpr (std::is_same_v<T, bf16>) {
    if (amx_serves(width, rank)) return in_steps(Type<AmxBackward<R>>{});
  }
#endif
#if PUMA_HAS_BF16
  if constexpr (std::is_same_v<T, bf16>) {
    if (pairs_serve(width, rank)) return in_steps(Type<PairBackward<R>>{});
  }
#endif
  if constexpr (!std::is_same_v<T, double>) {
    if (vectors_serve(width, rank)) return in_steps(Type<VectorBackward<R, T>>{});
  }
  const Tensor down_transposed = transposed_operand<T>(down, plan);
  const Tensor up_transposed = transposed_operand<T>(up, plan);
  const int64_t rows = most_rows(plan.kept);

  for_each_part(samples * length * width, [&](int64_t part, int64_t parts) {
    const int64_t begin = first_block(plan, part, parts), end = first_block(plan, part + 1, parts);
    for_each_dropped(plan, part, parts, drop);
    if (begin == end) return;
    const auto delta = lines<T>(rows * rank);
    const auto scaled_hidden = lines<T>(need_weights ? rows * rank : 0);
    const int64_t gathered_rows = most_scattered_rows(plan.kept);
    const auto grad_rows = lines<T>((std::is_same_v<R, T> ? gathered_rows : rows) * width);
    const auto token_rows = lines<T>(gathered_rows * width);
    if (need_weights) {
      down_sums[part] = zero_lines<accumulate_t<T>>(width * rank);
      up_sums[part] = zero_lines<accumulate_t<T>>(rank * width);
    }
    WeightSum<T> down_sum(down_sums[part].get(), width, rank), up_sum(up_sums[part].get(), rank, width);
    for (int64_t i = begin; i < end; ++i) {
      const Block& block = plan.kept[i];
      const T* g = grad_rows.get();
      if constexpr (std::is_same_v<R, T>) {
        g = gathered(plan, block, grad_data, grad_rows.get(), width);
      } else {
        for_each_sample(plan, block, [&](int64_t first, int64_t n, int64_t row, double) {
          convert(grad_rows.get() + first * width, grad_data + row * width, n * width);
        });
      }
      const T* const h = hidden_data + block.packed * rank;
      const Tensor g_matrix = matrix(g, block.rows, width), delta_matrix = matrix(delta.get(), block.rows, rank);
      // The factor goes into the narrow (rows, r) matrices: delta for tokens and down, hidden for up.
      mm(delta_matrix, g_matrix, up_transposed);
      for_each_sample(plan, block, [&](int64_t first, int64_t n, int64_t, double factor) {
        const auto f = static_cast<accumulate_t<T>>(factor);
        mask_scaled(delta.get() + first * rank, h + first * rank, f, n * rank);
        if (need_weights) scale(scaled_hidden.get() + first * rank, h + first * rank, f, n * rank);
      });
      if (need_weights) {
        const T* const x = gathered(plan, block, tokens_data, token_rows.get(), width);
        down_sum.add(transposed(x, block.rows, width), delta_matrix);
        up_sum.add(transposed(scaled_hidden.get(), block.rows, rank), g_matrix);
      }
      if (need_tokens) {
        T* const result = block.scattered ? token_rows.get() : grad_tokens_data + block.row * width;
        mm(matrix(result, block.rows, width), delta_matrix, down_transposed);
        if (block.scattered) {
          for_each_sample(plan, block, [&](int64_t first, int64_t n, int64_t row, double) {
            std::memcpy(
                static_cast<void*>(grad_tokens_data + row * width), result + first * width,
                static_cast<size_t>(n * width) * sizeof(T));
          });
        }
      }
    }
  });
  if (need_weights) {
    add_up<T>(grad_down, down_sums, {width, rank, rank, false});
    add_up<T>(grad_up, up_sums, {rank, width, width, false});
  }
  return {grad_tokens, grad_down, grad_up};
}

// Calls body(R{}, T{}) for the types of the residual (or its gradient) and of the tokens.
template <class F>
auto dispatch(const Tensor& residual, const Tensor& tokens, const F& body) {
  if (has_type(tokens, ScalarType::Float)) return body(float{}, float{});
  if (has_type(tokens, ScalarType::Double)) return body(double{}, double{});
  const bool wide = has_type(residual, ScalarType::Float);
  if (has_type(tokens, ScalarType::BFloat16)) return wide ? body(float{}, bf16{}) : body(bf16{}, bf16{});
  STD_TORCH_CHECK(
      has_type(tokens, ScalarType::Half),
      "puma::stochastic_adapter: tokens must be float32, float64, bfloat16 or float16");
  return wide ? body(float{}, fp16{}) : body(fp16{}, fp16{});
}

Tensor run(
    const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
    const std::optional<Tensor>& gate, const std::optional<Tensor>& branch, double scale, void* hidden) {
  std::optional<Tensor> dense_branch;
  if (branch.has_value()) dense_branch = as_contiguous(*branch);
  return dispatch(residual, tokens, [&](auto r, auto t) {
    using T = decltype(t);
    return forward<decltype(r), T>(
        as_contiguous(residual), as_contiguous(tokens), in_type<T>(down), in_type<T>(up), gate, dense_branch, scale,
        static_cast<T*>(hidden));
  });
}

std::tuple<Tensor, Tensor, Tensor> stochastic_adapter(
    const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
    const std::optional<Tensor>& gate, const std::optional<Tensor>& branch, double scale, bool save_hidden) {
  check_adapter(residual, tokens, down, up, gate, branch);
  const int64_t rows = save_hidden ? tokens.size(0) * tokens.size(1) : 0;
  const Tensor hidden = empty({rows, down.size(1)}, tokens.scalar_type());
  const Tensor prepared = empty({0}, ScalarType::Byte);  // nothing else is handed to the backward
  return {
      run(residual, tokens, down, up, gate, branch, scale, save_hidden ? hidden.data_ptr() : nullptr), hidden,
      prepared};
}

Tensor stochastic_adapter_inference(
    const Tensor& residual, const Tensor& tokens, const Tensor& down, const Tensor& up,
    const std::optional<Tensor>& gate, const std::optional<Tensor>& branch, double scale) {
  check_adapter(residual, tokens, down, up, gate, branch);
  return run(residual, tokens, down, up, gate, branch, scale, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> stochastic_adapter_backward(
    const Tensor& grad, const Tensor& tokens, const Tensor& down, const Tensor& up, const std::optional<Tensor>& gate,
    const Tensor& hidden, const Tensor& prepared, double scale, bool need_tokens, bool need_weights) {
  check_adapter_backward(grad, tokens, down, up, gate, hidden, prepared);
  return dispatch(grad, tokens, [&](auto r, auto t) {
    return backward<decltype(r), decltype(t)>(
        as_contiguous(grad), as_contiguous(tokens), down, up, gate, as_contiguous(hidden), scale, need_tokens,
        need_weights);
  });
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CPU, m) {
  m.impl("stochastic_adapter", TORCH_BOX(&puma::stochastic_adapter));
  m.impl("stochastic_adapter_inference", TORCH_BOX(&puma::stochastic_adapter_inference));
  m.impl("stochastic_adapter_backward", TORCH_BOX(&puma::stochastic_adapter_backward));
}
