// The adapter a few rows at a time: how a thread walks through its share of the kept rows, whichever unit computes them,
// and of the dropped ones.
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

// A part's share of the dropped rows, spread evenly over the steps that are left, at most kMostStepRows with each; the
// rest after the last.
class DroppedRows {
 public:
  DroppedRows(const Plan& plan, int64_t part, int64_t parts) {
    for_each_dropped(plan, part, parts, [&](int64_t row, int64_t rows) {
      runs_.push_back({row, rows});
      rows_ += rows;
    });
  }

  void give(Step& step, int64_t steps_left) {
    step.dropped = std::min(kMostStepRows, (rows_ + steps_left - 1) / steps_left);
    rows_ -= step.dropped;
    for (int64_t i = 0; i < step.dropped; ++i) {
      Run& run = runs_[first_];
      step.dropped_row[i] = run.row++;
      if (--run.rows == 0) ++first_;
    }
  }

  // Calls body(first row, rows) for the rest, run by run.
  template <class F>
  void for_rest(const F& body) const {
    for (size_t i = first_; i < runs_.size(); ++i) body(runs_[i].row, runs_[i].rows);
  }

 private:
  std::vector<Run> runs_;
  size_t first_ = 0;
  int64_t rows_ = 0;
};

// Calls body(first row, rows) for the dropped rows of a step, neighbours together.
template <class F>
void for_dropped(const Step& step, const F& body) {
  for (int64_t i = 0, n = 1; i < step.dropped; i += n, n = 1) {
    while (i + n < step.dropped && step.dropped_row[i + n] == step.dropped_row[i] + n) ++n;
    body(step.dropped_row[i], n);
  }
}

// Calls body(step, the next one or null), then drop(first row, rows) for the dropped rows that come with the step.
template <class F, class Drop>
void for_each_step(const Plan& plan, const Steps& steps, DroppedRows& dropped, const F& body, const Drop& drop) {
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
    dropped.give(step, end - index);
  };
  Step at_hand[2];
  if (begin < end) fill(at_hand[begin % 2], begin);
  for (int64_t i = begin; i < end; ++i) {
    Step* const next = i + 1 < end ? &at_hand[(i + 1) % 2] : nullptr;
    if (next != nullptr) fill(*next, i + 1);
    body(at_hand[i % 2], next);
    for_dropped(at_hand[i % 2], drop);
  }
}

// drop(first row, rows) sees to dropped rows; `rest` is what an Adapter takes between its weights and, in the backward, its
// sums.
template <class Adapter, class T, class Drop, class... Rest>
void forward_in_steps(
    const Plan& plan, const Drop& drop, const T* down, const T* up, int64_t width, int64_t rank, Rest... rest) {
  // Without kept rows the weights are not looked at.
  const bool any = !plan.kept_samples.empty();
  const auto down_operand = Adapter::Operand::of(down, any ? width : 0, rank);
  const auto up_operand = Adapter::Operand::of(up, any ? rank : 0, width);
  for_each_part(plan.samples() * plan.tokens_per_sample * width, [&](int64_t part, int64_t parts) {
    DroppedRows dropped(plan, part, parts);
    const Steps steps(plan, part, parts, Adapter::rows());
    if (steps.begin < steps.end) {
      Adapter adapter(down_operand, up_operand, rest...);
      const auto step = [&](const Step& here, const Step* next) { adapter.step(here, next); };
      for_each_step(plan, steps, dropped, step, drop);
    }
    dropped.for_rest(drop);
  });
}

// Leaves the sums of each part for the weights' gradients in down_sums and up_sums, if they are needed.
template <class Adapter, class T, class Drop, class... Rest>
void backward_in_steps(
    const Plan& plan, const Drop& drop, const T* down, const T* up, int64_t width, int64_t rank, bool need_weights,
    std::vector<Lines<float>>& down_sums, std::vector<Lines<float>>& up_sums, Rest... rest) {
  const bool any = !plan.kept_samples.empty();
  const auto down_operand = Adapter::Operand::of_transposed(down, any ? rank : 0, width);
  const auto up_operand = Adapter::Operand::of_transposed(up, any ? width : 0, rank);
  const int64_t strip = Adapter::strip(width), elements = (width + strip - 1) / strip * strip * rank;
  for_each_part(plan.samples() * plan.tokens_per_sample * width, [&](int64_t part, int64_t parts) {
    DroppedRows dropped(plan, part, parts);
    const Steps steps(plan, part, parts, Adapter::rows());
    if (steps.begin < steps.end) {
      if (need_weights) {
        down_sums[part] = zero_lines<float>(elements);
        up_sums[part] = zero_lines<float>(elements);
      }
      Adapter adapter(down_operand, up_operand, rest..., down_sums[part].get(), up_sums[part].get());
      const auto step = [&](const Step& here, const Step* next) { adapter.step(here, next); };
      for_each_step(plan, steps, dropped, step, drop);
      adapter.finish();
    }
    dropped.for_rest(drop);
  });
}

}  // namespace puma
