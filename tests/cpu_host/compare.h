// What the runners here share: random values, and the largest error so far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

// Between -most and most.
inline std::vector<float> draw(int64_t elements, float most) {
  static std::mt19937 generator(0);
  std::uniform_real_distribution<float> distribution(-most, most);
  std::vector<float> values(elements);
  for (float& value : values) value = distribution(generator);
  return values;
}

inline void raise(double& largest, double found, double expected) {
  const double error = std::abs(found - expected);
  largest = std::isnan(error) ? INFINITY : std::max(largest, error);
}
