// Products of the prompt pool on one thread: few prompts and many columns suit general GEMMs badly. Matrices are row-major
// and contiguous where nothing else is said; the result overwrites `out`. An element is computed in the same way wherever
// it lies in a call's rows and columns, so that it makes no difference how these are shared among threads; only the last
// columns, behind the last whole vector of a call, may differ in how a product is rounded before it is added.
#pragma once

#include <cstdint>

namespace puma {

constexpr int64_t COLUMN_BLOCK = 384;  // columns worth a call, a multiple of every vector's width

// out (rows, pool) = left (rows, columns) @ right (pool, columns) transposed; left's rows are `stride` elements apart.
template <class T>
void multiply_right_transposed(
    T* out, const T* left, int64_t stride, const T* right, int64_t rows, int64_t pool, int64_t columns);

// The same of rows one behind the other, and of their squares: out_of_squares = left^2 @ right_of_squares transposed.
template <class T>
void multiply_right_transposed_with_squares(
    T* out, T* out_of_squares, const T* left, const T* right, const T* right_of_squares, int64_t rows, int64_t pool,
    int64_t columns);

// Columns [begin, end) of out (rows, columns) = left (rows, pool) @ right (pool, columns).
template <class T>
void multiply(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns, int64_t begin, int64_t end);

// out (rows, columns) = left (rows, pool) @ right (pool, columns) + by (rows, columns) * (the same of a second pair).
template <class T>
void multiply_and_add(
    T* out, const T* left, const T* right, const T* by, const T* second_left, const T* second_right, int64_t rows,
    int64_t pool, int64_t columns);

// Columns [begin, end) of out (pool, columns) = left (rows, pool) transposed @ right (rows, columns).
template <class T>
void multiply_left_transposed(
    T* out, const T* left, const T* right, int64_t rows, int64_t pool, int64_t columns, int64_t begin, int64_t end);

// The same, and of right's squares: out_of_squares = left_of_squares transposed @ right^2.
template <class T>
void multiply_left_transposed_with_squares(
    T* out, T* out_of_squares, const T* left, const T* left_of_squares, const T* right, int64_t rows, int64_t pool,
    int64_t columns, int64_t begin, int64_t end);

}  // namespace puma
