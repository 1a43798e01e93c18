// A few rows that go through the adapter together, where it is not done block by block.
#pragma once

#include <cstdint>

namespace puma {

constexpr int64_t kMostStepRows = 32;

struct Step {
  int64_t count = 0;            // of kept samples
  int64_t packed = 0;           // the first row's place among all kept rows
  int64_t row[kMostStepRows];   // each one's place in the (B*N, C) tensors
  float factor[kMostStepRows];  // its sample's gate * scale
  // Rows of dropped samples that for_each_step sees to right after the step: they only need to be near by then.
  int64_t dropped = 0;
  int64_t dropped_row[kMostStepRows];
};

}  // namespace puma
