// Units of rows whose width need not be whole units: of the activation and its gradient.
#pragma once

#include "prepare.cuh"
#include "schedule.cuh"

namespace puma {

// A unit of a row of `width` elements from column on; rows need not be aligned, and may have been written by the kernel
// in front.
template <typename T>
PUMA_DEVICE Bytes16 load_row_unit(const T* row, int column, int width, bool aligned) {
  if (aligned) return column < width ? dev::load_written16(row + column) : Bytes16{{0, 0, 0, 0}};
  float v[kElements<T>];
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) v[e] = column + e < width ? dev::to_arithmetic(row[column + e]) : 0.0f;
  return make_unit<T>(v);
}

template <typename T>
PUMA_DEVICE void store_row_unit(T* row, int column, int width, bool aligned, const Bytes16& unit) {
  if (aligned) {
    if (column < width) dev::store_global16(row + column, unit);
    return;
  }
#pragma unroll
  for (int e = 0; e < kElements<T>; ++e) {
    if (column + e < width) dev::from_arithmetic(unit_element<T>(unit, e), row[column + e]);
  }
}

// The saved activation in a group of columns; zeros behind the last row.
template <typename T>
PUMA_DEVICE void load_mask(const AdapterArguments& p, const LanePlace<T>& place, int group, bool rows_aligned,
                           Bytes16 (&mask)[2]) {
  const int column = group * kGroup<T> + dev::lane() % 4 * kElements<T>;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    mask[h] = Bytes16{{0, 0, 0, 0}};
    if (!place.valid(h)) continue;
    const T* row = static_cast<const T*>(p.mask) + static_cast<int64_t>(place.compact() + 8 * h) * p.width;
    mask[h] = load_row_unit(row, column, p.width, rows_aligned);
  }
}

}  // namespace puma
