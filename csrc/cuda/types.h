// Storage types of the kernels. They carry bits only, so that the same kernel source compiles for the device and, in
// the tests, for the host. Arithmetic is done in float (or double); device.cuh converts.
#pragma once

#include <cstdint>

namespace puma {

struct f16 {
  uint16_t bits;
};

struct bf16 {
  uint16_t bits;
};

// What one thread moves per access: 16 bytes.
struct alignas(16) Bytes16 {
  uint32_t word[4];
};

// Arithmetic type of a storage type.
template <typename T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <typename T>
using arithmetic_t = typename Arithmetic<T>::type;

template <typename A, typename B>
inline constexpr bool same_type = false;
template <typename A>
inline constexpr bool same_type<A, A> = true;

}  // namespace puma
