// The fused adapter from pointers to launches: which kernels run, on which grid, in which workspace. Launcher is the
// CUDA one (launch.cuh) or, in the tests, one that runs the kernels on the host:
//   DeviceLimits limits() const;
//   template <typename Kernel> void run(int64_t blocks, int shared_bytes, const typename Kernel::Arguments&) const;
#pragma once

#include <algorithm>

#include "plan.h"

namespace puma {

// The workspace, from its start; every part begins at a multiple of 256 bytes.
class Workspace {
 public:
  explicit Workspace(char* base) : base_(base) {}
  template <typename T>
  T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += divide_up(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return part;
  }
  int64_t bytes() const { return std::max<int64_t>(bytes_, 1); }  // some, for null stands for the question

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// The list of samples, in dense parts: list_bytes().
struct ListParts {
  SampleList* list;
  int32_t* order;
  float* factors;

  ListParts(char* base, int64_t samples)
      : list(reinterpret_cast<SampleList*>(base)),
        order(reinterpret_cast<int32_t*>(list + 1)),
        factors(reinterpret_cast<float*>(order + divide_up(samples, 4) * 4)) {}
};

// What the backward takes over from the forward: prepared_bytes().
struct PreparedParts {
  Bytes16* weights;  // packed for the backward
  ListParts samples;

  PreparedParts(void* base, const AdapterSizes& s, int64_t packed_units)
      : weights(static_cast<Bytes16*>(base)), samples(reinterpret_cast<char*>(weights + packed_units), s.samples) {}
};

template <typename T, typename R, int kWidth>
class FusedAdapter {
 public:
  // Launches everything if `workspace` is given, which must be as large as the answer; returns the bytes it takes.
  template <typename Launcher>
  static int64_t forward(const Launcher& launcher, const ForwardProblem& p, char* workspace) {
    Workspace space(workspace);
    AdapterArguments a = common(p.sizes);
    const AdapterSizes& s = p.sizes;
    const int64_t units = packed_units(a);
    auto* weights = space.take<Bytes16>(units);
    auto* own_list = space.take<char>(p.prepared == nullptr ? list_bytes(s.samples) : 0);
    if (workspace == nullptr) return space.bytes();

    PrepareArguments prepare{};
    prepare.packings[0] = {as_operand(p.down, s.channels, s.width), as_operand(p.up, s.width, s.channels), weights};
    prepare.packing_count = 1;
    ListParts list(own_list, s.samples);
    if (p.prepared != nullptr) {
      const PreparedParts prepared(p.prepared, s, units);
      prepare.packings[1] = {as_transposed_operand(p.up, s.width, s.channels),
                             as_transposed_operand(p.down, s.channels, s.width), prepared.weights};
      prepare.packing_count = 2;
      list = prepared.samples;
    }
    prepare.gate = p.gate;
    prepare.samples = s.samples;
    prepare.scale = static_cast<float>(p.scale);
    prepare.padded_channels = a.padded_channels;
    prepare.list = list.list;
    prepare.order = list.order;
    prepare.factors = list.factors;
    prepare.pack_blocks = plan_pack_blocks(prepare.packing_count * units);
    launcher.template run<PrepareKernel<T, kWidth>>(prepare.pack_blocks + 1, kPrepareSharedBytes, prepare);

    take_over(list, weights, p.gate, a);
    a.input = p.tokens;
    a.residual = p.residual;
    a.branch = p.branch;
    a.output = p.out;
    a.activation = p.hidden;
    if (p.branch == nullptr) {
      run<false, Branch::kNone>(launcher, a, p.sizes);
    } else if (same_type<R, T> || !p.branch_is_narrow) {
      run<false, Branch::kWide>(launcher, a, p.sizes);
    } else if constexpr (!same_type<R, T>) {
      run<false, Branch::kNarrow>(launcher, a, p.sizes);
    }
    return space.bytes();
  }

  template <typename Launcher>
  static int64_t backward(const Launcher& launcher, const BackwardProblem& p, char* workspace) {
    Workspace space(workspace);
    AdapterArguments a = common(p.sizes);
    const bool need_weights = p.grad_down != nullptr;
    const GradientPlan gradient =
        plan_gradient(launcher.limits(), p.sizes, kWidth, Gradient::kRows, Gradient::kStageBytes);
    const int64_t rows = p.sizes.samples * p.sizes.tokens_per_sample;
    T* delta = need_weights ? space.take<T>(rows * kWidth) : nullptr;
    T* narrow_grad = need_weights && !same_type<R, T> ? space.take<T>(rows * p.sizes.channels) : nullptr;
    float* parts = need_weights ? space.take<float>(gradient.part_elements) : nullptr;
    if (workspace == nullptr) return space.bytes();
    const PreparedParts prepared(const_cast<void*>(p.prepared), p.sizes, packed_units(a));  // nothing is written there
    take_over(prepared.samples, prepared.weights, p.gate, a);
    a.input = p.grad;
    a.output = p.grad_tokens;
    a.mask = p.hidden;
    a.activation = delta;
    a.narrow_input = narrow_grad;
    run<true, Branch::kNone>(launcher, a, p.sizes);
    if (!need_weights) return space.bytes();

    WeightGradientArguments w{};
    w.tokens = p.tokens;
    w.grad = narrow_grad != nullptr ? narrow_grad : p.grad;
    w.grad_is_compact = narrow_grad != nullptr;
    w.hidden = p.hidden;
    w.delta = delta;
    w.list = a.list;
    w.order = a.order;
    w.factors = a.factors;
    w.parts = parts;
    w.grad_down = p.grad_down;
    w.grad_up = p.grad_up;
    w.gradients_are_float = p.down.is_float;
    w.tokens_per_sample = a.tokens_per_sample;
    w.channels = a.channels;
    w.channel_tiles = gradient.channel_tiles;
    w.splits = gradient.splits;
    w.stages = gradient.stages;
    w.width = a.width;
    using Sum = WeightGradientSumKernel<T, kWidth>;
    launcher.template run<WeightGradientKernel<T, kWidth>>(gradient.blocks, gradient.shared_bytes, w);
    launcher.template run<Sum>(gradient.sum_blocks, Sum::kSharedBytes, w);
    return space.bytes();
  }

  template <typename Kernel>
  static constexpr AdapterShape shape() {
    return {Kernel::kThreads, Packed::kStepBytes, kMayUseWarpgroups<T>, kMayStageRows<T, R>};
  }

 private:
  using Packed = PackedWeights<T, kWidth>;
  using Gradient = GradientTile<T, kWidth>;

  // Operand b of a product with element (k, n) = matrix[k][n], or matrix[n][k].
  static WeightView as_operand(const Matrix& m, int64_t rows, int64_t columns) {
    return {m.data, m.is_float, m.row_stride, m.column_stride, rows, columns};
  }
  static WeightView as_transposed_operand(const Matrix& m, int64_t rows, int64_t columns) {
    return {m.data, m.is_float, m.column_stride, m.row_stride, columns, rows};
  }

  static AdapterArguments common(const AdapterSizes& s) {
    AdapterArguments a{};
    a.samples = s.samples;
    a.tokens_per_sample = static_cast<int>(s.tokens_per_sample);
    a.channels = static_cast<int>(s.channels);
    a.padded_channels = static_cast<int>(padded_channels(s.channels, sizeof(T)));
    a.width = static_cast<int>(s.width);
    return a;
  }

  // Of both matrices.
  static int64_t packed_units(const AdapterArguments& a) {
    static_assert(Packed::kStepColumns == 128 / sizeof(T));  // as in padded_channels()
    return 2 * (a.padded_channels / Packed::kStepColumns) * Packed::kUnitsPerStep;
  }

  static void take_over(const ListParts& samples, const Bytes16* weights, const void* gate, AdapterArguments& a) {
    a.list = samples.list;
    a.order = samples.order;
    a.factors = samples.factors;
    a.gate = static_cast<const float*>(gate);
    a.weights = weights;
  }

  template <bool kBackward, Branch kBranch, typename Launcher>
  static void run(const Launcher& launcher, AdapterArguments& a, const AdapterSizes& s) {
    using Kernel = AdapterKernel<T, R, kWidth, kBackward, kBranch>;
    const AdapterPlan plan = plan_adapter(launcher.limits(), s, shape<Kernel>(),
                                          a.padded_channels / Packed::kStepColumns, a.output != nullptr ? 2 : 1);
    a.resident = plan.resident;
    a.row_stages_at = plan.row_stages_at;
    launcher.template run<Kernel>(plan.blocks, plan.shared_bytes, a);
  }
};

// Calls function with the FusedAdapter that takes this r.
template <typename T, typename R, typename Function>
int64_t with_fused_adapter(int64_t width, const Function& function) {
  if (padded_width(width) == 64) return function(FusedAdapter<T, R, 64>{});
  return function(FusedAdapter<T, R, 128>{});
}

}  // namespace puma
