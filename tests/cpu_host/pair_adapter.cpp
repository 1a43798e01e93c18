// The adapter by products of pairs of bfloat16. Prints the largest error next to a bfloat16 and a float32 residual.
#include "pair_adapter.h"

#include <cstdio>

#include "adapter_in_steps.h"

namespace {

template <class R>
double largest_error_of(const Sizes& sizes, bool need_weights) {
  return largest_error<puma::PairForward<R>, puma::PairBackward<R>, R, bf16>(sizes, need_weights);
}

}  // namespace

int main() {
  if (!puma::pairs_serve(32, 32) || puma::pairs_serve(48, 32) || puma::pairs_serve(32, 8)) return 1;
  // One row; an odd number of rows; panels that are filled up; widths that are no multiple of a strip's; more rows than are collected; all in one
  // sample.
  constexpr Sizes kSizes[] = {{1, 1, 32, 32}, {4, 5, 96, 64}, {7, 41, 64, 16}, {1, 337, 160, 96}, {12, 57, 64, 176}};
  for (const bool need_weights : {true, false}) {
    for (const Sizes& sizes : kSizes) {
      std::printf("%.2e %.2e\n", largest_error_of<bf16>(sizes, need_weights), largest_error_of<float>(sizes, need_weights));
    }
  }
}
