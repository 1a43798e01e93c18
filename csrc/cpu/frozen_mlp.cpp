// GELU MLP with frozen weights on the CPU, see vector_mlp.h.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "gemm.h"
#include "kept_rows.h"
#include "tile.h"
#include "vector_mlp.h"

namespace puma {
namespace {

// A bias of so many elements, and the memory it needs to be contiguous.
struct Bias {
  std::optional<Tensor> dense;
  const float* data = nullptr;

  Bias(const std::optional<Tensor>& tensor, int64_t elements) {
    if (!tensor.has_value()) return;
    STD_TORCH_CHECK(
        tensor->scalar_type() == ScalarType::Float && tensor->numel() == elements,
        "puma::frozen_mlp: a bias must be float32 with ", elements, " elements");
    dense = as_contiguous(*tensor);
    data = const_data<float>(*dense);
  }
};

// A contiguous (rows, columns) matrix, or its transpose, as an operand; its panels are laid out by all threads.
VectorOperand operand(const float* matrix, int64_t rows, int64_t columns, bool transpose) {
  VectorOperand result(transpose ? columns : rows, transpose ? rows : columns);
  torch::stable::parallel_for(0, result.panels(), 1, [&](int64_t begin, int64_t end) {
    transpose ? result.fill_transposed(matrix, begin, end) : result.fill(matrix, begin, end);
  });
  return result;
}

// Calls body(the thread's mlp, first group, end group) for each thread's share of the rows.
template <class F>
void for_each_share(const VectorOperand& first, const VectorOperand& second, int64_t rows, const F& body) {
  const int64_t groups = VectorMlp::groups(rows);
  for_each_part(rows * second.depth(), [&](int64_t part, int64_t parts) {
    const int64_t begin = groups * part / parts, end = groups * (part + 1) / parts;
    if (begin == end) return;
    VectorMlp mlp(first, second, rows);
    body(mlp, begin, end);
  });
}

// How many rows of this width there are; and that the weights are what the kernels read.
int64_t rows_of(const Tensor& rows, const Tensor& fc1, const Tensor& fc2, bool of_input) {
  STD_TORCH_CHECK(
      rows.scalar_type() == ScalarType::Float && fc1.scalar_type() == ScalarType::Float &&
          fc2.scalar_type() == ScalarType::Float,
      "puma::frozen_mlp: float32 was expected");
  const int64_t multiple = mlp_width_multiple();
  const auto fits = [&](int64_t width) { return width > 0 && width % multiple == 0; };
  STD_TORCH_CHECK(
      fc1.dim() == 2 && fc2.dim() == 2 && fc2.size(1) == fc1.size(0) && multiple > 0 && fits(fc1.size(1)) &&
          fits(fc1.size(0)) && fits(fc2.size(0)),
      "puma::frozen_mlp: fc1 must be (hidden, in) and fc2 (out, hidden), of widths within frozen_mlp_limits");
  const int64_t width = of_input ? fc1.size(1) : fc2.size(0);
  STD_TORCH_CHECK(
      rows.dim() >= 1 && rows.size(rows.dim() - 1) == width, "puma::frozen_mlp: rows must be ", width, " wide");
  return rows.numel() / width;
}

// As `like`, but with rows of another width.
Tensor empty_like(const Tensor& like, int64_t width) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < like.dim(); ++d) sizes.push_back(like.size(d));
  sizes.push_back(width);
  return empty(sizes.data(), sizes.size(), ScalarType::Float, aoti_torch_device_type_cpu(), 0);
}

std::tuple<Tensor, Tensor> frozen_mlp(
    const Tensor& input_in, const Tensor& fc1_in, const std::optional<Tensor>& bias1, const Tensor& fc2_in,
    const std::optional<Tensor>& bias2, bool save_slopes) {
  const Tensor input = as_contiguous(input_in), fc1 = as_contiguous(fc1_in), fc2 = as_contiguous(fc2_in);
  const int64_t rows = rows_of(input, fc1, fc2, true);
  const int64_t in = fc1.size(1), hidden = fc1.size(0), out = fc2.size(0);
  const Bias shift1(bias1, hidden), shift2(bias2, out);
  const Tensor output = empty_like(input, out);
  const Tensor slopes = empty(
      {save_slopes ? rows + kMoreSlopeRows : 0, rounded_up(hidden, kSlopeColumns), kSlopeBytes}, ScalarType::Byte);
  const VectorOperand first = operand(const_data<float>(fc1), hidden, in, true);
  const VectorOperand second = operand(const_data<float>(fc2), out, hidden, true);
  const float* const input_data = const_data<float>(input);
  float* const output_data = mutable_data<float>(output);
  uint8_t* const slopes_data = save_slopes ? mutable_data<uint8_t>(slopes) : nullptr;
  if (save_slopes) {
    const int64_t used = slope_bytes(rows, hidden);
    std::fill(slopes_data + used, slopes_data + slopes.numel(), uint8_t{0});
  }
  for_each_share(first, second, rows, [&](VectorMlp& mlp, int64_t begin, int64_t end) {
    mlp.forward(input_data, shift1.data, shift2.data, output_data, slopes_data, begin, end);
  });
  return {output, slopes};
}

Tensor frozen_mlp_backward(
    const Tensor& grad_in, const Tensor& slopes_in, const Tensor& fc1_in, const Tensor& fc2_in) {
  const Tensor grad = as_contiguous(grad_in), fc1 = as_contiguous(fc1_in), fc2 = as_contiguous(fc2_in);
  const Tensor slopes = as_contiguous(slopes_in);
  const int64_t rows = rows_of(grad, fc1, fc2, false);
  const int64_t in = fc1.size(1), hidden = fc1.size(0), out = fc2.size(0);
  STD_TORCH_CHECK(
      slopes.scalar_type() == ScalarType::Byte &&
          slopes.numel() == (rows + kMoreSlopeRows) * rounded_up(hidden, kSlopeColumns) * kSlopeBytes,
      "puma::frozen_mlp: slopes are not those of so many rows");
  const Tensor grad_input = empty_like(grad, in);
  const VectorOperand first = operand(const_data<float>(fc2), out, hidden, false);
  const VectorOperand second = operand(const_data<float>(fc1), hidden, in, false);
  const float* const grad_data = const_data<float>(grad);
  const uint8_t* const slopes_data = const_data<uint8_t>(slopes);
  float* const grad_input_data = mutable_data<float>(grad_input);
  for_each_share(first, second, rows, [&](VectorMlp& mlp, int64_t begin, int64_t end) {
    mlp.backward(grad_data, slopes_data, grad_input_data, begin, end);
  });
  return grad_input;
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CPU, m) {
  m.impl("frozen_mlp", TORCH_BOX(&puma::frozen_mlp));
  m.impl("frozen_mlp_backward", TORCH_BOX(&puma::frozen_mlp_backward));
}
