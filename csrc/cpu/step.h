// A few rows of kept samples that go through the adapter together, where it is not done block by block.
#pragma once

#include <cstdint>

namespace puma {

constexpr int64_t kMostStepRows = 32;

struct Step {
  int64_t count;
  int64_t packed;               // the first row's place among all kept rows
  int64_t row[kMostStepRows];   // each one's place in the (B*N, C) tensors
  float factor[kMostStepRows];  // its sample's gate * scale
};

}  // namespace puma
