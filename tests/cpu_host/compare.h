// What the runners here share: values of float32 and of half types, random ones, and the largest error so far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "half.h"

inline float value_of(float value) { return value; }
template <class Half>
float value_of(Half value) {
  return puma::widened<float>(Half{}, static_cast<uint32_t>(value.bits));
}

// Between -most and most, rounded to T.
template <class T = float>
std::vector<T> draw(int64_t elements, float most) {
  static std::mt19937 generator(0);
  std::uniform_real_distribution<float> distribution(-most, most);
  std::vector<T> values(elements);
  for (T& value : values) {
    const float drawn = distribution(generator);
    if constexpr (sizeof(T) == sizeof(float)) {
      value = drawn;
    } else {
      value.bits = static_cast<uint16_t>(puma::narrowed<uint32_t>(T{}, drawn));
    }
  }
  return values;
}

inline void raise(double& largest, double found, double expected) {
  const double error = std::abs(found - expected);
  largest = std::isnan(error) ? INFINITY : std::max(largest, error);
}
