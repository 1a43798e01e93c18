// Every kernel under one shape: its arguments, its block size, its body. launch.cuh turns one into a __global__
// function; the tests run the same body on the host.
#pragma once

#include "general.cuh"
#include "prompts_backward.cuh"
#include "prompts_forward.cuh"
#include "weight_gradient.cuh"

namespace puma {

struct KernelDefaults {
  static constexpr bool kDependent = false;  // may begin before the kernel in front has ended: wait_for_previous_kernel
};

template <typename T, int kWidth>
struct PrepareKernel : KernelDefaults {
  using Arguments = PrepareArguments;
  static constexpr int kThreads = kPrepareThreads;
  static constexpr bool kDependent = true;
  static PUMA_DEVICE void body(const Arguments& a) { prepare<T, kWidth>(a); }
};

template <typename T, typename R, int kWidth, bool kBackward, Branch kBranch>
struct AdapterKernel : KernelDefaults {
  using Arguments = AdapterArguments;
  static constexpr int kThreads = 32 * kAdapterWarps<T, R, kWidth, kBranch>;
  static constexpr bool kDependent = true;
  static PUMA_DEVICE void body(const Arguments& a) { adapter<T, R, kWidth, kBackward, kBranch>(a); }
};

template <typename T, int kWidth>
struct WeightGradientKernel : KernelDefaults {
  using Arguments = WeightGradientArguments;
  static constexpr int kThreads = kGradientThreads;
  static constexpr bool kDependent = true;
  static PUMA_DEVICE void body(const Arguments& a) { weight_gradient<T, kWidth>(a); }
};

template <typename T, int kWidth>
struct WeightGradientSumKernel : KernelDefaults {
  using Arguments = WeightGradientArguments;
  static constexpr int kThreads = kReduceThreads;
  static constexpr bool kDependent = true;
  static constexpr int kSharedBytes = kReduceTile * (kReduceTile + 1) * static_cast<int>(sizeof(float));
  static PUMA_DEVICE void body(const Arguments& a) { weight_gradient_sum<T, kWidth>(a); }
};

template <typename S, typename T>
struct GatherRowsKernel : KernelDefaults {
  struct Arguments {
    RowsArguments rows;
    const S* source;
    T* compact;
    bool with_factor;
  };
  static constexpr int kThreads = kRowsThreads;
  static PUMA_DEVICE void body(const Arguments& a) { gather_rows(a.rows, a.source, a.compact, a.with_factor); }
};

template <typename T, typename R>
struct ScatterAddRowsKernel : KernelDefaults {
  struct Arguments {
    RowsArguments rows;
    const R* residual;
    const void* branch;
    bool branch_is_narrow;
    const T* product;
    R* out;
  };
  static constexpr int kThreads = kRowsThreads;
  static PUMA_DEVICE void body(const Arguments& a) {
    scatter_add_rows(a.rows, a.residual, a.branch, a.branch_is_narrow, a.product, a.out);
  }
};

template <typename T>
struct ScatterRowsKernel : KernelDefaults {
  struct Arguments {
    RowsArguments rows;
    const T* compact;
    T* out;
  };
  static constexpr int kThreads = kRowsThreads;
  static PUMA_DEVICE void body(const Arguments& a) { scatter_rows(a.rows, a.compact, a.out); }
};

template <typename T>
struct RectifyKernel : KernelDefaults {
  struct Arguments {
    int64_t count;
    T* values;
  };
  static constexpr int kThreads = kRowsThreads;
  static PUMA_DEVICE void body(const Arguments& a) { rectify(a.count, a.values); }
};

template <typename T>
struct MaskKernel : KernelDefaults {
  struct Arguments {
    RowsArguments rows;
    int64_t width;
    const T* hidden;
    T* delta;
    T* clean;
  };
  static constexpr int kThreads = kRowsThreads;
  static PUMA_DEVICE void body(const Arguments& a) { mask_by_activation(a.rows, a.width, a.hidden, a.delta, a.clean); }
};

template <typename T>
struct PromptWeightsKernel : KernelDefaults {
  using Arguments = PromptArguments<T>;
  static constexpr int kThreads = kPromptThreads;
  static PUMA_DEVICE void body(const Arguments& a) { prompt_weights(a); }
};

// Dependent, as the second of the gradients: in front is a kernel that is not, so the operator's inputs are complete
// when they begin, and they read them before they wait.
template <typename T>
struct PromptMatchKernel : KernelDefaults {
  struct Arguments {
    PromptArguments<T> prompts;
    int column_blocks;
  };
  static constexpr int kThreads = kPromptThreads;
  static constexpr bool kDependent = true;
  static constexpr int kSharedBytes = sizeof(MatchShared<T>);
  static PUMA_DEVICE void body(const Arguments& a) { prompt_match(a.prompts, a.column_blocks); }
};

template <typename T>
struct PromptGradientFirstKernel : KernelDefaults {
  struct Arguments {
    PromptGradientArguments<T> prompts;
    PromptGradientGrid grid;
  };
  static constexpr int kThreads = kPromptThreads;
  static constexpr int kSharedBytes = sizeof(PromptsShared<T>);
  static PUMA_DEVICE void body(const Arguments& a) { prompt_gradient_first(a.prompts, a.grid); }
};

template <typename T>
struct PromptGradientSecondKernel : KernelDefaults {
  using Arguments = typename PromptGradientFirstKernel<T>::Arguments;
  static constexpr int kThreads = kSecondThreads;
  static constexpr bool kDependent = true;
  static constexpr int kSharedBytes = kSecondSharedBytes<T>;
  static PUMA_DEVICE void body(const Arguments& a) { prompt_gradient_second(a.prompts, a.grid); }
};

}  // namespace puma
