// What prompt matching computes of a single prompt, its key K and its attention A, both of C elements, beside the products
// with all queries: with S = softmax(A) and U = K / |K|, queries are multiplied by S*U, their squares by S^2.
#pragma once

#include <cstdint>

namespace puma {

// A prompt's row of each: S, U, S*U and S^2.
template <class T>
struct PromptRow {
  T *focus, *unit, *product, *square;
};

// Fills the row; returns |K|, at least the smallest normal number.
template <class T>
T prepare_prompt(PromptRow<T> row, const T* key, const T* attention, int64_t width);

// Gradients of K and A from that of S*U and twice that of S^2.
template <class T>
void prompt_gradients(
    T* grad_key, T* grad_attention, const T* grad_product, const T* twice_grad_square, PromptRow<T> row, T norm,
    int64_t width);

}  // namespace puma
