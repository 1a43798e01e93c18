"""Calls every CUDA kernel once on small inputs, for compute-sanitizer. Run by benchmarks/device.sh on a GPU."""

import torch

from puma_plugin import ops


def adapter(
    tokens: torch.dtype, residual: torch.dtype, b: int, n: int, c: int, r: int, gated: bool, float_weights: bool = False
) -> None:
    """With and without a branch, which has the tokens' type, then the residual's."""

    def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.float64).to(dtype).requires_grad_()

    gate = torch.tensor([2.0 * (i % 2) for i in range(b)], device="cuda") if gated else None
    if gate is not None and tokens == torch.float64:
        gate = gate.double()
    x, h = normal(b, n, c, dtype=residual), normal(b, n, c, dtype=tokens)
    weights = torch.float32 if float_weights else tokens
    down, up = normal(c, r, dtype=weights), normal(r, c, dtype=weights)
    for branch in (None, normal(b, n, c, dtype=tokens), normal(b, n, c, dtype=residual)):
        out = ops.stochastic_adapter(x, h, down, up, gate, 0.1, branch=branch)
        out.sum().backward()
        for tensor in (out, x.grad, h.grad, down.grad, up.grad):
            assert tensor is not None
            assert bool(tensor.isfinite().all())


def prompts(dtype: torch.dtype) -> None:
    q, k, a = (torch.randn(s, 96, device="cuda", dtype=dtype, requires_grad=True) for s in (11, 20, 20))
    p = torch.randn(20, 8, 96, device="cuda", dtype=dtype, requires_grad=True)
    prompt, weights = ops.match_prompts(q, k, a, p)
    (prompt.sum() + weights.square().sum()).backward()
    assert p.grad is not None
    assert bool(p.grad.isfinite().all())


def main() -> None:
    torch.manual_seed(0)
    f64, f32, bf16, f16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
    for tokens, residual in [(bf16, bf16), (bf16, f32), (f16, f16), (f16, f32), (f32, f32)]:
        adapter(tokens, residual, 5, 37, 384, 128, gated=True)
        adapter(tokens, residual, 3, 21, 72, 24, gated=False)
    adapter(bf16, f32, 3, 37, 768, 128, gated=True)  # weights are streamed
    adapter(bf16, f32, 5, 37, 384, 128, gated=True, float_weights=True)  # as under autocast
    adapter(f16, f16, 3, 21, 72, 100, gated=True, float_weights=True)
    adapter(f32, f32, 3, 9, 20, 7, gated=True)  # rows of the activation are not aligned
    for tokens, residual in [(f64, f64), (f32, f32), (bf16, f32), (f16, f16)]:
        adapter(tokens, residual, 4, 7, 13, 150, gated=True)  # general path
    prompts(f32)
    prompts(f64)
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
