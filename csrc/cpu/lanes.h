// Lanes of GCC's vectors, moved among W vectors of W lanes.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace puma {

template <int... index, class V>
PUMA_INLINE V shuffle(V a, V b, std::integer_sequence<int, index...> /*places*/) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, index...);
#else
  typedef std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t> Index __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Index{index...});
#endif
}

// Of two vectors of W lanes: lanes whose bit S is 0 from a, the others from b; each from S lanes nearer or farther.
template <int W, int S, bool far, int... lane>
constexpr auto places(std::integer_sequence<int, lane...> /*lanes*/) {
  return std::integer_sequence<int, ((lane & S) == 0 ? lane + (far ? S : 0) : W + lane - (far ? 0 : S))...>{};
}

struct Sum {
  template <class V>
  PUMA_INLINE V operator()(V a, V b) const {
    return a + b;
  }
};

// NaN may be lost.
struct Maximum {
  template <class V>
  PUMA_INLINE V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

// Lane l of the result is made of all lanes of vectors[l], which lie as vectors do (alignas): see load in tile.h.
template <int W, class Operation, int S = 1, class V>
PUMA_INLINE V over_lanes(V* vectors) {
  if constexpr (S < W) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
    PUMA_UNROLL for (int i = 0; i < W; i += 2 * S) {
      const V a = vectors[i], b = vectors[i + S];
      vectors[i] = Operation{}(shuffle(a, b, places<W, S, false>(lanes)), shuffle(a, b, places<W, S, true>(lanes)));
    }
    return over_lanes<W, Operation, 2 * S>(vectors);
  } else {
    return vectors[0];
  }
}

// The first `count` elements of memory; the other lanes are 0.
template <class V, class T>
PUMA_INLINE V load_some(const T* in, int64_t count) {
  V value{};
  for (int64_t i = 0; i < count; ++i) value[i] = in[i];
  return value;
}

template <class V, class T>
PUMA_INLINE void store_some(T* out, V value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = value[i];
}

// 0, 1, 2, ...
template <class Index, int... lane>
PUMA_INLINE Index counted(std::integer_sequence<int, lane...> /*lanes*/) {
  return Index{lane...};
}

// The first `count` lanes of value, the others minus infinity.
template <class V>
PUMA_INLINE V only(V value, int64_t count) {
  using Index = typename Vector<int32_t, sizeof(V)>::type;
  constexpr int W = sizeof(V) / sizeof(float);
  const auto lane = counted<Index>(std::make_integer_sequence<int, W>{});
  return lane < static_cast<int32_t>(count) ? value : V{} - std::numeric_limits<float>::infinity();
}

// Lane l of vector i becomes lane i of vector l; they lie as vectors do.
template <int W, int S = 1, class V>
PUMA_INLINE void transpose(V (&vectors)[W]) {
  if constexpr (S < W) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
    PUMA_UNROLL for (int i = 0; i < W; ++i) {
      if ((i & S) != 0) continue;
      const V a = vectors[i], b = vectors[i + S];
      vectors[i] = shuffle(a, b, places<W, S, false>(lanes));
      vectors[i + S] = shuffle(a, b, places<W, S, true>(lanes));
    }
    transpose<W, 2 * S>(vectors);
  }
}

}  // namespace puma
