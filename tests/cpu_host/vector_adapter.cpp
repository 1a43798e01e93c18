// The adapter on vector registers. Prints the largest error of each type.
#include "vector_adapter.h"

#include <cstdio>

#include "adapter_in_steps.h"

namespace {

template <class R, class T>
double largest_error_of(const Sizes& sizes, bool need_weights) {
  return largest_error<puma::VectorForward<R, T>, puma::VectorBackward<R, T>, R, T>(sizes, need_weights);
}

}  // namespace

int main() {
  // One row; widths that are no multiple of a tile's or a strip's; more rows than are collected; all in one sample.
  constexpr Sizes kSizes[] = {{1, 1, 16, 16}, {4, 5, 80, 48}, {7, 41, 48, 16}, {1, 150, 112, 80}, {5, 29, 64, 144}};
  for (const bool need_weights : {true, false}) {
    for (const Sizes& sizes : kSizes) {
      std::printf(
          "%.2e %.2e %.2e %.2e %.2e\n", largest_error_of<float, float>(sizes, need_weights),
          largest_error_of<bf16, bf16>(sizes, need_weights), largest_error_of<float, bf16>(sizes, need_weights),
          largest_error_of<fp16, fp16>(sizes, need_weights), largest_error_of<float, fp16>(sizes, need_weights));
    }
  }
}
