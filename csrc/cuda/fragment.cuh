// Tensor-core products in units of 16 bytes per thread.
//
// A unit is kElements<T> = 16 / sizeof(T) neighbouring elements of one row. A group is what the four lanes that share a
// row of a fragment hold together: kGroup<T> = 4 units = 32 columns (16-bit types) or 16 columns (float). In a group
// the order of the summation index is free as long as both operands agree, so a lane's unit is taken as its fragment
// without any shuffle: lane t of four owns columns [t * kElements, (t + 1) * kElements).
//
// The columns of a product are numbered the same way: tile j of a group, column c of the tile is column
// kElements * (c / 2) + 2 * j + c % 2 of the group. An accumulator then holds, over the tiles of a group, one unit of
// neighbouring columns per row: it is stored with one 16-byte access, and is the next product's operand as it stands.
#pragma once

#include "device.cuh"

namespace puma {

template <typename T>
inline constexpr int kElements = 16 / static_cast<int>(sizeof(T));
template <typename T>
inline constexpr int kGroup = 4 * kElements<T>;
template <typename T>
inline constexpr int kTilesPerGroup = kGroup<T> / 8;

// Products of four warps at once (Hopper), else of one. float needs three products in place of one and keeps to the
// latter.
template <typename T>
inline constexpr bool kMayUseWarpgroups = sizeof(T) == 2;
template <typename T>
inline constexpr bool uses_warpgroups = dev::kHasWarpgroups && kMayUseWarpgroups<T>;
// Warps that go through their rows together.
template <typename T>
inline constexpr int kWarpsTogether = uses_warpgroups<T> ? 4 : 1;

// Elements of a unit, as arithmetic values.
template <typename T>
PUMA_DEVICE float unit_element(const Bytes16& unit, int i) {
  if constexpr (sizeof(T) == 4) {
    return dev::bits_float(unit.word[i]);
  } else {
    return dev::to_arithmetic(T{static_cast<uint16_t>(unit.word[i / 2] >> (16 * (i % 2)))});
  }
}

template <typename T>
PUMA_DEVICE Bytes16 make_unit(const float (&v)[kElements<T>]) {
  Bytes16 unit;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if constexpr (sizeof(T) == 4) {
      unit.word[w] = dev::float_bits(v[w]);
    } else {
      unit.word[w] = dev::pack_pair(T{}, v[2 * w], v[2 * w + 1]);
    }
  }
  return unit;
}

// kElements<T> elements as they lie in memory in type S: one unit, or two where S = float is read for a 16-bit T.
template <typename S, typename T>
struct Stored {
  static constexpr int kUnits = static_cast<int>(sizeof(S) / sizeof(T));
  Bytes16 unit[kUnits];

  PUMA_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) unit[i] = Bytes16{{0, 0, 0, 0}};
  }
  // kWritten: the kernel in front may have written it.
  template <bool kWritten = false>
  PUMA_DEVICE void load(const S* address) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const S* part = address + i * kElements<S>;
      unit[i] = kWritten ? dev::load_written16(part) : dev::load_global16(part);
    }
  }
  PUMA_DEVICE void store(S* address) const {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) dev::store_global16(address + i * kElements<S>, unit[i]);
  }
  PUMA_DEVICE float element(int i) const { return unit_element<S>(unit[i / kElements<S>], i % kElements<S>); }
  PUMA_DEVICE void set(const float (&v)[kElements<T>]) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      float part[kElements<S>];
#pragma unroll
      for (int e = 0; e < kElements<S>; ++e) part[e] = v[i * kElements<S> + e];
      unit[i] = make_unit<S>(part);
    }
  }
  // The same elements rounded to T.
  PUMA_DEVICE Bytes16 as_operand() const {
    if constexpr (same_type<S, T>) {
      return unit[0];
    } else {
      float v[kElements<T>];
#pragma unroll
      for (int e = 0; e < kElements<T>; ++e) v[e] = element(e);
      return make_unit<T>(v);
    }
  }
};

// A float as the sum of two TF32 numbers, up to 2^-21 of itself. The tensor core drops the lower bits of `low`.
// An infinite operand gives NaN (inf - inf).
PUMA_DEVICE void split_tf32(uint32_t bits, uint32_t& high, uint32_t& low) {
  high = (bits + 0x1000u) & 0xffffe000u;
  low = dev::float_bits(dev::bits_float(bits) - dev::bits_float(high));
}

// float operands in three TF32 products, nearly as accurate as in float.
PUMA_DEVICE void mma_float(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) split_tf32(a[i], a_high[i], a_low[i]);
#pragma unroll
  for (int i = 0; i < 2; ++i) split_tf32(b[i], b_high[i], b_low[i]);
  dev::mma_16x8x8_tf32(d, a_low[0], a_low[1], a_low[2], a_low[3], b_high[0], b_high[1]);
  dev::mma_16x8x8_tf32(d, a_high[0], a_high[1], a_high[2], a_high[3], b_low[0], b_low[1]);
  dev::mma_16x8x8_tf32(d, a_high[0], a_high[1], a_high[2], a_high[3], b_high[0], b_high[1]);
}

// The unit, whose splits the compiler may not make ahead of a loop: they would take twice its registers.
template <typename T>
PUMA_DEVICE Bytes16 split_here(Bytes16 unit) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int w = 0; w < 4; ++w) unit.word[w] = dev::here(unit.word[w]);
  }
  return unit;
}

// A short run of products of T, which function(d) adds to d. In float it starts from zero and joins d by the ordinary
// adder: the tensor core truncates its sums, which over a long one adds up to several units of the last place, all in
// one direction.
template <typename T, typename Function>
PUMA_DEVICE void in_short_run(float (&d)[4], const Function& function) {
  if constexpr (sizeof(T) == 4) {
    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    function(part);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += part[i];
  } else {
    function(d);
  }
}

// Operand a of products over half a group, of this lane's units of rows lane / 4 and lane / 4 + 8.
struct Fragment {
  uint32_t word[4];
};
PUMA_DEVICE Fragment fragment_half(const Bytes16 (&rows)[2], int half) {
  return {{rows[0].word[2 * half], rows[1].word[2 * half], rows[0].word[2 * half + 1], rows[1].word[2 * half + 1]}};
}

// d (16 x 8) += a (16 x group) * b (group x 8). upper: this lane's unit of row lane / 4, lower: of row lane / 4 + 8;
// b: its unit of column lane / 4.
template <typename T>
PUMA_DEVICE void mma_group(float (&d)[4], const Bytes16& upper, const Bytes16& lower, const Bytes16& b) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Fragment fragment = fragment_half({upper, lower}, half);
    const uint32_t(&a)[4] = fragment.word;
    const uint32_t bb[2] = {b.word[2 * half], b.word[2 * half + 1]};
    if constexpr (sizeof(T) == 4) {
      mma_float(d, a, bb);
    } else {
      dev::mma_16x8x16(T{}, d, a[0], a[1], a[2], a[3], bb[0], bb[1]);
    }
  }
}

// Values of row lane / 4 + 8 * half out of the accumulators of one group: this lane's unit of neighbouring columns.
template <typename T>
PUMA_DEVICE void accumulator_row(const float (*tiles)[4], int half, float (&v)[kElements<T>]) {
#pragma unroll
  for (int j = 0; j < kTilesPerGroup<T>; ++j) {
    v[2 * j] = tiles[j][2 * half];
    v[2 * j + 1] = tiles[j][2 * half + 1];
  }
}

}  // namespace puma
