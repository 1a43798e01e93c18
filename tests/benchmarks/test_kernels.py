"""The command that times kernel by kernel; the timing itself needs a GPU."""

import pytest
import torch

from benchmarks.kernels import main, short_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("void puma::entry<puma::PrepareKernel<puma::bf16, 128> >(puma::PrepareKernel<puma::bf16, 128>::Arguments)",
         "PrepareKernel<bf16, 128>"),
        ("void at::native::copy<8, float>(int, float*)", "at::native::copy<8, float>"),
        ("Memset (Device)", "Memset"),
    ],
)  # fmt: skip
def test_short_names(name: str, expected: str) -> None:
    assert short_name(name) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_kernel_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch", "4", "--width", "384", "--drop", "0.5"]) == 0
    printed = capsys.readouterr().out
    for kernel in ("PrepareKernel", "AdapterKernel", "WeightGradientKernel", "WeightGradientSumKernel"):
        assert kernel in printed
