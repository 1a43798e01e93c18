// The adapter a few rows at a time: how a thread walks through its share of the kept rows, whichever unit computes them.
#pragma once

#include <algorithm>
#include <vector>

#include "kept_rows.h"
#include "lines.h"
#include "step.h"

namespace puma {

// A part's share of the kept rows, in steps of `most` rows.
struct Steps {
  int64_t most, rows, begin, end;

  Steps(const Plan& plan, int64_t part, int64_t parts, int64_t most)
      : most(most), rows(static_cast<int64_t>(plan.kept_samples.size()) * plan.tokens_per_sample) {
    const int64_t steps = (rows + most - 1) / most;
    begin = steps * part / parts;
    end = steps * (part + 1) / parts;
  }
};

// Calls body(step, the next one or null).
template <class F>
void for_each_step(const Plan& plan, const Steps& steps, const F& body) {
  const int64_t begin = steps.begin, end = steps.end;
  const auto fill = [&](Step& step, int64_t index) {
    step.packed = index * steps.most;
    step.count = std::min(steps.most, steps.rows - step.packed);
    const Block block{step.packed, step.count, 0, true};
    for_each_sample(plan, block, [&](int64_t first, int64_t n, int64_t row, double factor) {
      for (int64_t j = 0; j < n; ++j) {
        step.row[first + j] = row + j;
        step.factor[first + j] = static_cast<float>(factor);
      }
    });
  };
  Step at_hand[2];
  if (begin < end) fill(at_hand[begin % 2], begin);
  for (int64_t i = begin; i < end; ++i) {
    Step* const next = i + 1 < end ? &at_hand[(i + 1) % 2] : nullptr;
    if (next != nullptr) fill(*next, i + 1);
    body(at_hand[i % 2], next);
  }
}

// drop(part, parts) sees to the dropped rows; `rest` is what an Adapter takes after its weights.
template <class Adapter, class T, class Drop, class... Rest>
void forward_in_steps(
    const Plan& plan, const Drop& drop, const T* down, const T* up, int64_t width, int64_t rank, Rest... rest) {
  const auto down_operand = Adapter::Operand::of(down, width, rank);
  const auto up_operand = Adapter::Operand::of(up, rank, width);
  for_each_part(plan.samples() * plan.tokens_per_sample * width, [&](int64_t part, int64_t parts) {
    drop(part, parts);
    const Steps steps(plan, part, parts, Adapter::rows());
    if (steps.begin == steps.end) return;
    Adapter adapter(down_operand, up_operand, rest...);
    for_each_step(plan, steps, [&](const Step& step, const Step* next) { adapter.step(step, next); });
  });
}

// Leaves the sums of each part for the weights' gradients in down_sums and up_sums, if they are needed.
template <class Adapter, class T, class Drop, class... Rest>
void backward_in_steps(
    const Plan& plan, const Drop& drop, const T* down, const T* up, int64_t width, int64_t rank, bool need_weights,
    std::vector<Lines<float>>& down_sums, std::vector<Lines<float>>& up_sums, Rest... rest) {
  const auto down_operand = Adapter::Operand::of_transposed(down, rank, width);
  const auto up_operand = Adapter::Operand::of_transposed(up, width, rank);
  const int64_t strip = Adapter::strip(width), elements = (width + strip - 1) / strip * strip * rank;
  for_each_part(plan.samples() * plan.tokens_per_sample * width, [&](int64_t part, int64_t parts) {
    drop(part, parts);
    const Steps steps(plan, part, parts, Adapter::rows());
    if (steps.begin == steps.end) return;
    if (need_weights) {
      down_sums[part] = zero_lines<float>(elements);
      up_sums[part] = zero_lines<float>(elements);
    }
    Adapter adapter(down_operand, up_operand, rest..., down_sums[part].get(), up_sums[part].get());
    for_each_step(plan, steps, [&](const Step& step, const Step* next) { adapter.step(step, next); });
    adapter.finish();
  });
}

}  // namespace puma
