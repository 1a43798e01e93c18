// The schemas of every operator, for all devices. Kernels register themselves under their device's key:
// csrc/cpu/*.cpp (CPU, this library) and csrc/cuda/*.cpp (CUDA, library _C_cuda). Fake kernels and autograd are registered in
// Python (puma_plugin/ops), but for the search, which is for eager code only. What the adapter and prompt matching ask of
// their arguments is in arguments.h; the others are for the CPU only.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(puma, m) {
  // residual + branch + gate * scale * relu(tokens @ down) @ up. `hidden` holds relu(tokens @ down) of the kept samples
  // (gate != 0), compacted to the front in their order, if save_hidden; else it has no rows. Rows behind are undefined.
  // branch has the residual's dtype or the tokens'; down and up have the tokens', or float32 next to half types, to which
  // they are rounded. `prepared` is what this device's backward takes over besides.
  m.def(
      "stochastic_adapter(Tensor residual, Tensor tokens, Tensor down, Tensor up, Tensor? gate, Tensor? branch, "
      "float scale, bool save_hidden) -> (Tensor out, Tensor hidden, Tensor prepared)");
  // The same without what only a backward needs: for eager calls that take no gradient.
  m.def(
      "stochastic_adapter_inference(Tensor residual, Tensor tokens, Tensor down, Tensor up, Tensor? gate, "
      "Tensor? branch, float scale) -> Tensor out");
  // Gradients of tokens, down and up, in their dtypes. What is not needed comes back as a tensor without elements.
  m.def(
      "stochastic_adapter_backward(Tensor grad, Tensor tokens, Tensor down, Tensor up, Tensor? gate, Tensor hidden, "
      "Tensor prepared, float scale, bool need_tokens, bool need_weights) "
      "-> (Tensor grad_tokens, Tensor grad_down, Tensor grad_up)");
  // weights = cos(query * softmax(attention), keys) of shape (B, M); prompt = weights @ prompts of shape (B, L, C);
  // inverse_norm (B, M) = 1 / |query * softmax(attention)|, for the backward.
  m.def(
      "match_prompts(Tensor query, Tensor keys, Tensor attention, Tensor prompts) "
      "-> (Tensor prompt, Tensor weights, Tensor inverse_norm)");
  // grad_prompt and grad_weights: None stands for zeros. grad_query has no elements unless need_query.
  m.def(
      "match_prompts_backward(Tensor? grad_prompt, Tensor? grad_weights, Tensor query, Tensor keys, Tensor attention, "
      "Tensor prompts, Tensor weights, Tensor inverse_norm, bool need_query) "
      "-> (Tensor grad_query, Tensor grad_keys, Tensor grad_attention, Tensor grad_prompts)");
  // gelu(input @ fc1^T + bias1) @ fc2^T + bias2 for frozen weights on the CPU, float32, input (..., in), within
  // frozen_mlp_limits (module.cpp). `slopes` (rows and some more, hidden and some more, 3) is what the backward needs,
  // GELU's slopes in 24 bits, if save_slopes; else it has no rows.
  m.def(
      "frozen_mlp(Tensor input, Tensor fc1, Tensor? bias1, Tensor fc2, Tensor? bias2, bool save_slopes) "
      "-> (Tensor output, Tensor slopes)");
  m.def("frozen_mlp_backward(Tensor grad, Tensor slopes, Tensor fc1, Tensor fc2) -> Tensor");
  // Self-attention on the CPU in float32 or bfloat16, within packed_attention_limits (module.cpp). qkv is (B, N, 3, H, D),
  // out softmax(scale * q @ k^T) @ v as (B, N, H*D); logsumexp (B, H, N) of scale * q @ k^T, float32.
  m.def("packed_attention(Tensor qkv, float scale) -> (Tensor out, Tensor logsumexp)");
  m.def("packed_attention_backward(Tensor grad, Tensor qkv, Tensor logsumexp, float scale) -> Tensor grad_qkv");
  // Exact search on the CPU, without gradients. pack_gallery makes what it needs beside the rows (G, C) float32;
  // nearest_neighbours gives squared L2 distances, ascending, and places (Q, k) of the gallery rows nearest to each of
  // queries (Q, C); equals by place, which is an int64 below 2^32, or the position. Searched are the rows from begin to
  // end, or all others. Rows with the query's own id (int64) are left out, and all whose distance is not below the
  // query's limit (float32); where fewer than k are left, infinity and -1.
  // Rows that are not finite, or longer than 2^60, find nothing and are not found.
  m.def("pack_gallery(Tensor gallery) -> Tensor");
  m.def(
      "nearest_neighbours(Tensor queries, Tensor gallery, Tensor packed, int k, Tensor? query_ids, "
      "Tensor? gallery_ids, Tensor? limits, Tensor? places, int begin, int end, bool outside) "
      "-> (Tensor distances, Tensor places)");
}
