#include "vector_operand.h"

#include <algorithm>

#include "half.h"
#include "row_products.h"

namespace puma {
namespace {

float widened_value(float value) { return value; }
template <class Half>
float widened_value(Half value) {
  return widened<float>(Half{}, static_cast<uint32_t>(value.bits));
}

}  // namespace

VectorOperand::VectorOperand(int64_t depth, int64_t columns)
    : depth_(depth), columns_(columns), panels_(lines<float>(rounded_up(columns, tile_columns()) * depth)) {}

int64_t VectorOperand::panels() const { return (columns_ + tile_columns() - 1) / tile_columns(); }

template <class T>
void VectorOperand::fill(const T* matrix, int64_t first_panel, int64_t end_panel) {
  const int64_t width = tile_columns();
  float* out = panels_.get() + first_panel * width * depth_;
  for (int64_t column = first_panel * width; column < std::min(end_panel * width, columns_); column += width) {
    const int64_t some = std::min(width, columns_ - column);
    for (int64_t k = 0; k < depth_; ++k, out += width) {
      const T* const in = matrix + k * columns_ + column;
      for (int64_t c = 0; c < some; ++c) out[c] = widened_value(in[c]);
      std::fill(out + some, out + width, 0.0F);
    }
  }
}

// In blocks, so that neither matrix is read or written across.
template <class T>
void VectorOperand::fill_transposed(const T* matrix, int64_t first_panel, int64_t end_panel) {
  const int64_t width = tile_columns();
  float* out = panels_.get() + first_panel * width * depth_;
  for (int64_t column = first_panel * width; column < std::min(end_panel * width, columns_);
       column += width, out += width * depth_) {
    const int64_t some = std::min(width, columns_ - column);
    if (some < width) std::fill_n(out, width * depth_, 0.0F);
    for (int64_t c = 0; c < some; c += kBlock) {
      for (int64_t block = 0; block < depth_; block += kBlock) {
        for (int64_t k = block; k < block + kBlock; ++k) {
          for (int64_t i = 0; i < kBlock; ++i) {
            out[k * width + c + i] = widened_value(matrix[(column + c + i) * depth_ + k]);
          }
        }
      }
    }
  }
}

template <class T>
VectorOperand VectorOperand::of(const T* matrix, int64_t depth, int64_t columns) {
  VectorOperand operand(depth, columns);
  operand.fill(matrix, 0, operand.panels());
  return operand;
}

template <class T>
VectorOperand VectorOperand::of_transposed(const T* matrix, int64_t depth, int64_t columns) {
  VectorOperand operand(depth, columns);
  operand.fill_transposed(matrix, 0, operand.panels());
  return operand;
}

#define PUMA_TYPE(T)                                                                  \
  template void VectorOperand::fill<T>(const T*, int64_t, int64_t);                   \
  template void VectorOperand::fill_transposed<T>(const T*, int64_t, int64_t);        \
  template VectorOperand VectorOperand::of<T>(const T*, int64_t, int64_t);            \
  template VectorOperand VectorOperand::of_transposed<T>(const T*, int64_t, int64_t);

PUMA_TYPE(float)
PUMA_TYPE(bf16)
PUMA_TYPE(fp16)

}  // namespace puma
