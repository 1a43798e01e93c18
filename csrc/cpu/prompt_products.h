// Products of the prompt pool on one thread: few prompts and many columns suit general GEMMs badly. Matrices are
// contiguous, row by row; the result overwrites `out`. Every element is summed in one order, but the compiler decides
// for each size of tile whether a product is rounded before it is added (GCC does for small ones where it is tuned to
// avoid chains of fused operations). So the last bit may depend on where a call's rows and columns begin and end.
#pragma once

#include <cstdint>

namespace puma {

constexpr int64_t ROW_TILE = 4;        // rows computed together; those behind the last whole tile one by one
constexpr int64_t COLUMN_BLOCK = 384;  // columns worth a call, a multiple of every tile's width

// out (rows, columns) = left (rows, pool) @ right (pool, columns).
template <class T>
void multiply(T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns);

// Columns [begin, end) of out (pool, columns) = left (rows, pool) transposed @ right (rows, columns).
template <class T>
void multiply_left_transposed(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns, int64_t begin, int64_t end);

// out (rows, pool) = left (rows, columns) @ right (pool, columns) transposed.
template <class T>
void multiply_right_transposed(T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns);

}  // namespace puma
