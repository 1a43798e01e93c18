// Products of the prompt pool: few prompts and many columns suit general GEMMs badly. Matrices are contiguous, row by
// row; the result overwrites `out`. Every element is summed in one order, however many threads share the work.
#pragma once

#include <cstdint>

namespace puma {

// out (rows, columns) = left (rows, pool) @ right (pool, columns).
template <class T>
void multiply(T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns);

// out (pool, columns) = left (rows, pool) transposed @ right (rows, columns).
template <class T>
void multiply_left_transposed(T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns);

// out (rows, pool) = left (rows, columns) @ right (pool, columns) transposed.
template <class T>
void multiply_right_transposed(T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns);

}  // namespace puma
