"""No command replaces the results of another."""

from pathlib import Path

import pytest

from puma_plugin.experiments.settings.results import holds_run, require_no_other_results, require_no_run


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint-part0.pt", "model.safetensors"])
def test_a_run(tmp_path: Path, name: str) -> None:
    assert not holds_run(tmp_path / "nowhere")
    require_no_run(tmp_path)
    (tmp_path / name).touch()
    assert holds_run(tmp_path)
    with pytest.raises(ValueError, match="which holds a run of `puma train`; give another --out"):
        require_no_run(tmp_path)


def test_a_run_before_its_first_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    assert not holds_run(tmp_path)
    require_no_other_results(tmp_path)  # it may begin again
    with pytest.raises(ValueError, match="which holds a run"):
        require_no_run(tmp_path)


def test_others_results(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").touch()
    with pytest.raises(ValueError, match="the results of an evaluation or a comparison; give another --out"):
        require_no_other_results(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "puma.json").touch()
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(ValueError, match="the results of a comparison; give another --out"):
        require_no_other_results(tmp_path)


def test_a_folder_that_is_only_called_like_one(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.sbatch").touch()
    require_no_other_results(tmp_path)
