// The operators of packed attention: heads of attention_tiles.h, shared among threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "attention_tiles.h"
#include "gemm.h"

namespace puma {
namespace {

AttentionSizes sizes_of(const Tensor& qkv) {
  const ScalarType dtype = qkv.scalar_type();
  const auto is_in = [](int64_t value, int64_t most) { return 1 <= value && value <= most; };
  STD_TORCH_CHECK(
      qkv.dim() == 5 && qkv.size(2) == 3 && is_in(qkv.size(1), most_attention_tokens()) &&
          is_in(qkv.size(4), kMostHeadDim) && qkv.size(4) % kHeadDimMultiple == 0 &&
          (dtype == ScalarType::Float || dtype == ScalarType::BFloat16),
      "puma::packed_attention: qkv must be (B, N, 3, H, D), float32 or bfloat16, within packed_attention_limits");
  return {qkv.size(1), qkv.size(3), qkv.size(4)};
}

// body(a value of the type that qkv has).
template <class F>
void with_type_of(const Tensor& qkv, const F& body) {
  qkv.scalar_type() == ScalarType::BFloat16 ? body(bf16{}) : body(float{});
}

// Each thread takes neighbouring heads. A head's results do not depend on who computes it.
template <class F>
void share_heads(int64_t heads, const F& run) {
  const int64_t parts = std::min<int64_t>(heads, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) run(heads * part / parts, heads * (part + 1) / parts);
  });
}

std::tuple<Tensor, Tensor> packed_attention(const Tensor& maybe_strided, double scale) {
  const Tensor qkv = as_contiguous(maybe_strided);
  const AttentionSizes sizes = sizes_of(qkv);
  const int64_t samples = qkv.size(0);
  const Tensor out = empty({samples, sizes.tokens, sizes.out_row()}, qkv.scalar_type());
  const Tensor logsumexp = empty({samples, sizes.heads, sizes.tokens}, ScalarType::Float);
  with_type_of(qkv, [&](auto type) {
    using T = decltype(type);
    share_heads(samples * sizes.heads, [&](int64_t first, int64_t last) {
      AttentionForward<T>(
          sizes, static_cast<float>(scale), const_data<T>(qkv), mutable_data<T>(out), mutable_data<float>(logsumexp))
          .run(first, last);
    });
  });
  return {out, logsumexp};
}

Tensor packed_attention_backward(
    const Tensor& maybe_strided_grad, const Tensor& maybe_strided_qkv, const Tensor& maybe_strided_logsumexp,
    double scale) {
  const Tensor grad = as_contiguous(maybe_strided_grad), qkv = as_contiguous(maybe_strided_qkv);
  const Tensor logsumexp = as_contiguous(maybe_strided_logsumexp);
  const AttentionSizes sizes = sizes_of(qkv);
  const int64_t samples = qkv.size(0), heads = samples * sizes.heads;
  STD_TORCH_CHECK(
      grad.scalar_type() == qkv.scalar_type() && grad.numel() == samples * sizes.tokens * sizes.out_row() &&
          logsumexp.scalar_type() == ScalarType::Float && logsumexp.numel() == heads * sizes.tokens,
      "puma::packed_attention_backward: grad must be (B, N, H*D) of qkv's dtype, logsumexp (B, H, N) of float32");
  const Tensor grad_qkv = empty({samples, sizes.tokens, 3, sizes.heads, sizes.head_dim}, qkv.scalar_type());
  with_type_of(qkv, [&](auto type) {
    using T = decltype(type);
    share_heads(heads, [&](int64_t first, int64_t last) {
      AttentionBackward<T>(
          sizes, static_cast<float>(scale), const_data<T>(grad), const_data<T>(qkv), const_data<float>(logsumexp),
          mutable_data<T>(grad_qkv))
          .run(first, last);
    });
  });
  return grad_qkv;
}

}  // namespace
}  // namespace puma

STABLE_TORCH_LIBRARY_IMPL(puma, CPU, m) {
  m.impl("packed_attention", TORCH_BOX(&puma::packed_attention));
  m.impl("packed_attention_backward", TORCH_BOX(&puma::packed_attention_backward));
}
