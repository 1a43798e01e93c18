// What the kernels of prompt matching share: sums over lanes, tiles of columns.
#pragma once

#include <limits>
#include <type_traits>

#include "device.cuh"
#include "problem.h"

namespace puma {

inline constexpr int kPromptThreads = 256;
inline constexpr int kPromptWarps = kPromptThreads / 32;

template <typename T>
PUMA_DEVICE T larger(T a, T b) {
  return a > b || a != a ? a : b;  // NaN wins
}

// Sums over the lanes, which all get the result; the values travel side by side.
template <typename T, int kCount>
PUMA_DEVICE void sum_over_warp(T (&value)[kCount]) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] += dev::shuffle_xor(value[i], mask);
  }
}

// By value: `upper ? a[i] : a[j]` would choose an address, which moves the array to local memory.
template <typename T>
PUMA_DEVICE T select(bool condition, T a, T b) {
  return condition ? T(a) : T(b);
}

// Sums 32 values over the lanes: lane i gets the sum of value[i]. In each step a lane keeps half of its values and
// gives the other half to its partner.
template <typename T, int kCount>
PUMA_DEVICE T sum_and_spread(const T (&value)[kCount]) {
  if constexpr (kCount == 1) {
    return value[0];
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = (dev::lane() & kHalf) != 0;
    T kept[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const T given = select(upper, value[i], value[i + kHalf]);
      kept[i] = select(upper, value[i + kHalf], value[i]) + dev::shuffle_xor(given, kHalf);
    }
    return sum_and_spread(kept);
  }
}

template <typename T>
PUMA_DEVICE T largest_of_warp(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = larger(value, dev::shuffle_xor(value, mask));
  return value;
}

// Calls tile(begin, full) for every kColumns columns; full tells at compile time that all of them exist.
template <int kColumns, typename Tile>
PUMA_DEVICE void for_tiles(int64_t begin, int64_t end, const Tile& tile) {
  for (; begin + kColumns <= end; begin += kColumns) tile(begin, std::true_type{});
  if (begin < end) tile(begin, std::false_type{});
}

template <int kMost>
PUMA_DEVICE int count_up_to(int64_t left) {
  return left < kMost ? static_cast<int>(left) : kMost;
}

template <typename T>
PUMA_DEVICE T inside_or(bool inside, const T* address, T otherwise) {
  return inside ? *address : otherwise;
}

}  // namespace puma
