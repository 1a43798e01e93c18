// The fused adapter from pointers to launches: which kernels run, on which grid, in which workspace. Launcher is the
// CUDA one (launch.cuh) or, in the tests, one that runs the kernels on the host:
//   DeviceLimits limits() const;
//   template <typename Kernel> void run(int64_t blocks, int shared_bytes, const typename Kernel::Arguments&) const;
#pragma once

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
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

template <typename T, typename R, int kWidth>
class FusedAdapter {
 public:
  // Launches everything if `workspace` is given, which must be as large as the answer; returns the bytes it takes.
  template <typename Launcher>
  static int64_t forward(const Launcher& launcher, const ForwardProblem& p, char* workspace) {
    Workspace space(workspace);
    AdapterArguments a = common(p.sizes);
    const WeightView first = as_operand(p.down, p.sizes.channels, p.sizes.width);
    const WeightView second = as_operand(p.up, p.sizes.width, p.sizes.channels);
    const PrepareArguments prepare = plan(space, p.sizes, p.gate, p.scale, first, second, a);
    if (workspace == nullptr) return space.bytes();
    a.input = p.tokens;
    a.residual = p.residual;
    a.branch = p.branch;
    a.output = p.out;
    a.activation = p.hidden;
    if (p.branch == nullptr) {
      run<false, Branch::kNone>(launcher, prepare, a, p.sizes);
    } else if (same_type<R, T> || !p.branch_is_narrow) {
      run<false, Branch::kWide>(launcher, prepare, a, p.sizes);
    } else if constexpr (!same_type<R, T>) {
      run<false, Branch::kNarrow>(launcher, prepare, a, p.sizes);
    }
    return space.bytes();
  }

  template <typename Launcher>
  static int64_t backward(const Launcher& launcher, const BackwardProblem& p, char* workspace) {
    Workspace space(workspace);
    AdapterArguments a = common(p.sizes);
    const WeightView first = as_transposed_operand(p.up, p.sizes.width, p.sizes.channels);
    const WeightView second = as_transposed_operand(p.down, p.sizes.channels, p.sizes.width);
    const PrepareArguments prepare = plan(space, p.sizes, p.gate, p.scale, first, second, a);
    const bool need_weights = p.grad_down != nullptr;
    const GradientPlan gradient =
        plan_gradient(launcher.limits(), p.sizes, kWidth, Gradient::kRows, Gradient::kStageBytes);
    const int64_t rows = p.sizes.samples * p.sizes.tokens_per_sample;
    T* delta = need_weights ? space.take<T>(rows * kWidth) : nullptr;
    T* narrow_grad = need_weights && !same_type<R, T> ? space.take<T>(rows * p.sizes.channels) : nullptr;
    float* parts = need_weights ? space.take<float>(gradient.part_elements) : nullptr;
    if (workspace == nullptr) return space.bytes();
    a.input = p.grad;
    a.output = p.grad_tokens;
    a.mask = p.hidden;
    a.activation = delta;
    a.narrow_input = narrow_grad;
    run<true, Branch::kNone>(launcher, prepare, a, p.sizes);
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

 private:
  using Packed = PackedWeights<T, kWidth>;
  using Gradient = GradientTile<T, kWidth>;

  // Operand b of a product with element (k, n) = matrix[k][n], or matrix[n][k].
  static WeightView as_operand(const Matrix& m, int64_t rows, int64_t columns) {
    return {m.data, m.row_stride, m.column_stride, rows, columns};
  }
  static WeightView as_transposed_operand(const Matrix& m, int64_t rows, int64_t columns) {
    return {m.data, m.column_stride, m.row_stride, columns, rows};
  }

  static AdapterArguments common(const AdapterSizes& s) {
    AdapterArguments a{};
    a.samples = s.samples;
    a.tokens_per_sample = static_cast<int>(s.tokens_per_sample);
    a.channels = static_cast<int>(s.channels);
    a.padded_channels = static_cast<int>(padded_channels(s.channels, Packed::kStepColumns));
    a.width = static_cast<int>(s.width);
    return a;
  }

  static PrepareArguments plan(Workspace& space, const AdapterSizes& s, const void* gate, double scale,
                               const WeightView& first, const WeightView& second, AdapterArguments& a) {
    PrepareArguments p{};
    p.gate = gate;
    p.samples = s.samples;
    p.list = space.take<SampleList>(1);
    p.order = space.take<int32_t>(s.samples);
    p.factors = space.take<float>(s.samples);
    p.scale = static_cast<float>(scale);
    p.first = first;
    p.second = second;
    p.padded_channels = a.padded_channels;
    const int64_t units = 2 * (a.padded_channels / Packed::kStepColumns) * Packed::kUnitsPerStep;
    p.packed = space.take<Bytes16>(units);
    p.pack_blocks = plan_pack_blocks(units);
    a.list = p.list;
    a.order = p.order;
    a.factors = p.factors;
    a.weights = p.packed;
    return p;
  }

  template <bool kBackward, Branch kBranch, typename Launcher>
  static void run(const Launcher& launcher, const PrepareArguments& prepare, AdapterArguments& a,
                  const AdapterSizes& s) {
    launcher.template run<PrepareKernel<T, kWidth>>(prepare.pack_blocks + 1, kPrepareSharedBytes, prepare);
    const int products = a.output != nullptr ? 2 : 1;
    const AdapterPlan plan =
        plan_adapter(launcher.limits(), s, Packed::kStepBytes, a.padded_channels / Packed::kStepColumns, products);
    a.resident = plan.resident;
    launcher.template run<AdapterKernel<T, R, kWidth, kBackward, kBranch>>(plan.blocks, plan.shared_bytes, a);
  }
};

// Calls function with the FusedAdapter that takes this r.
template <typename T, typename R, typename Function>
int64_t with_fused_adapter(int64_t width, const Function& function) {
  if (padded_width(width) == 64) return function(FusedAdapter<T, R, 64>{});
  return function(FusedAdapter<T, R, 128>{});
}

}  // namespace puma
