"""Files of tensors: what is written comes back, and what was damaged does not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from puma_plugin.utils.tensor_files import DamagedFileError, read_metadata, read_tensors, write_tensors


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        "matrix": torch.randn(5, 7).t(),
        "scale": torch.tensor(0.5, dtype=torch.bfloat16),
        "steps": torch.arange(3),
        "none": torch.empty(0, 4),
    }


@pytest.fixture
def path(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    write_tensors(tmp_path / "folder" / "a.safetensors", tensors, {"written by": "a test"})
    return tmp_path / "folder" / "a.safetensors"


def test_what_was_written_comes_back(path: Path, tensors: dict[str, Tensor]) -> None:
    metadata, found = read_tensors(path)
    assert metadata["written by"] == read_metadata(path)["written by"] == "a test"
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("place", [-1, -100])
def test_a_changed_byte_is_noticed(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"a\.safetensors is damaged: its tensors are not those .* Copy it anew"):
        read_tensors(path)
    assert read_metadata(path)["written by"] == "a test"


def test_renamed_tensors_are_noticed(path: Path) -> None:
    metadata, found = read_tensors(path)
    save_file({name.upper(): tensor for name, tensor in found.items()}, path, metadata)
    with pytest.raises(DamagedFileError, match="their digest differs"):
        read_tensors(path)


def test_files_without_a_digest_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    metadata, found = read_tensors(tmp_path / "plain.safetensors")
    assert not metadata
    assert torch.equal(found["a"], torch.ones(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path, value: float) -> None:
    odd = {"fine": torch.ones(2), "odd": torch.tensor([1.0, value])}
    with pytest.raises(ValueError, match=r"odd holds NaN or infinity, so nothing was written to .*x\.safetensors"):
        write_tensors(tmp_path / "x.safetensors", odd, {})
    assert not list(tmp_path.iterdir())
    save_file(odd, tmp_path / "x.safetensors")
    with pytest.raises(DamagedFileError, match=r"x\.safetensors cannot be used: odd holds NaN"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("keep", [0, 7, -1])
def test_a_truncated_file(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    for read in (read_metadata, read_tensors):
        with pytest.raises(DamagedFileError, match="is truncated or not a safetensors file"):
            read(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for place in ("", tmp_path):
        with pytest.raises(ValueError, match=r"path must be a file, got .*; give a name such as"):
            write_tensors(place, {}, {})


def test_parameters_are_written_without_their_graph(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    write_tensors(tmp_path / "a.safetensors", dict(layer.named_parameters()), {})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")[1]["weight"], layer.weight.detach())
