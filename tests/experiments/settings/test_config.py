"""Settings are checked before any work."""

import re
from pathlib import Path

import pytest

import puma_plugin
from puma_plugin.cli.parsing import make_parser, packaged_config, parse
from puma_plugin.datasets import BENCHMARK
from puma_plugin.experiments.settings.comparison_config import DemoConfig
from puma_plugin.experiments.settings.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

FOLDERS = {"a": "/data/a"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(), "data.folders is empty and data.root is not given; name at least one distribution"),
        (lambda: DataConfig(kind="embedded", folders=FOLDERS), "data.folders is given with data.kind embedded"),
        (
            lambda: DataConfig(folders={"a": "/a", "b": "/b"}, root="/data"),
            "data.root is /data and data.folders names a, b; give one of the two",
        ),
        (lambda: DataConfig(folders=FOLDERS, manifest="a.csv"), "data.manifest is given with data.kind image_folders"),
        (lambda: DataConfig(kind="benchmark"), "data.root is missing"),
        (lambda: DataConfig(kind="benchmark", root="/data", folders=FOLDERS), "data.folders is given with data.kind"),
        (lambda: DataConfig(kind="manifest"), "data.manifest is missing"),
        (lambda: DataConfig(root="/data", names=["a", "a"]), "data.names is ['a', 'a']"),
        (lambda: DataConfig(folders=FOLDERS, known_bad="a.json"), "data.bad_images raise"),
        (lambda: DataConfig(folders=FOLDERS, min_images=0), "data.min_images is 0"),
        (lambda: DataConfig(kind="embedded", small_classes="skip"), "the classes of data.kind embedded are fixed"),
        (lambda: DataConfig(folders=FOLDERS, test_fraction=1.0), "data.test_fraction is 1.0"),
        (lambda: DataConfig(folders=FOLDERS, validation_fraction=-0.1), "data.validation_fraction is -0.1"),
        (lambda: DataConfig(folders=FOLDERS, shots=0), "data.shots is 0"),
        (lambda: DataConfig(folders=FOLDERS, crop_scale=0.0), "data.crop_scale"),
        (lambda: DataConfig(folders=FOLDERS, mean=[0.5]), "data.mean is [0.5]"),
        (lambda: DataConfig(folders=FOLDERS, std=[0.5, 0.0, 1.0]), "data.std is [0.5, 0.0, 1.0]; it must be positive"),
        (lambda: DataConfig(folders=FOLDERS, image_size=0), "data.image_size is 0; give 1 or more, or null"),
        (lambda: DataConfig(folders=FOLDERS, workers=-1), "data.workers"),
        (lambda: ModelConfig(drop=1.0), "model.drop is 1.0"),
        (lambda: ModelConfig(adapter_dim=0), "model.adapter_dim is 0"),
        (lambda: ModelConfig(pool_size=-1), "model.pool_size is -1"),
        (lambda: ModelConfig(backbone=""), "model.backbone is empty"),
        (lambda: OptimizerConfig(lr=0.0), "optimizer.lr is 0.0"),
        (lambda: OptimizerConfig(clip=0.0), "optimizer.clip is 0.0"),
        (lambda: OptimizerConfig(step_epochs=0), "optimizer.step_epochs"),
        (lambda: OptimizerConfig(warmup_epochs=-0.5), "optimizer.warmup_epochs is -0.5"),
        (lambda: TrainConfig(DataConfig(folders=FOLDERS), epochs=0), "epochs is 0"),
        (lambda: TrainConfig(DataConfig(folders=FOLDERS), threads=0), "threads is 0"),
        (lambda: TrainConfig(DataConfig(folders=FOLDERS), checkpoint_minutes=-1), "checkpoint_minutes is -1"),
        (
            lambda: TrainConfig(DataConfig(kind="embedded"), ModelConfig(backbone="embedded", weights="x.pth")),
            "model.weights is 'x.pth'",
        ),
        (lambda: DemoConfig(TrainConfig(DataConfig(folders=FOLDERS))), "train.data.kind must be embedded"),
        (lambda: _demo(grid=[1.0, 1.0]), "grid is [1.0, 1.0]"),
        (lambda: _demo(grid=[-1.0]), "must be positive"),
        (lambda: _demo(data_seeds=[]), "data_seeds is []"),
        (
            lambda: DemoConfig(TrainConfig(DataConfig(kind="embedded", domain="tuning"))),
            "train.data.domain is tuning; leave it at benchmark",
        ),
        (lambda: DataConfig(folders=FOLDERS, domain="tuning"), "data.domain is tuning with data.kind image_folders"),
        (lambda: _demo(workers=-1), "workers is -1"),
        (lambda: _demo(queries=0), "queries is 0"),
    ],
)
def test_refuses_and_names_the_setting(make, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def _demo(**values) -> DemoConfig:
    return DemoConfig(TrainConfig(DataConfig(kind="embedded")), **values)


def _parse(arguments: list[str], config_class=TrainConfig):
    return parse(make_parser("train", "", config_class), config_class, arguments)[0]


@pytest.mark.parametrize("name", ["paper", "few_shot"])
def test_packaged_configurations_are_valid(name: str) -> None:
    config = _parse(["--config", packaged_config(name)])
    assert config.data.kind == "benchmark"
    assert config.model.method == "puma"


def test_image_folders_take_a_root_or_folders() -> None:
    """The packaged file names no place itself: it would be merged with what the command line names."""
    below = _parse(["--config", "image_folders.yaml", "--data.root", "pics"])
    assert (below.data.root, below.data.folders, below.model.method) == ("pics", {}, "puma")
    named = _parse(["--config", "image_folders.yaml", "--data.folders.dogs", "/d", "--data.folders.cats", "/c"])
    assert (named.data.root, named.data.folders) == (None, {"dogs": "/d", "cats": "/c"})
    with pytest.raises(ValueError, match=r"data.folders is empty and data.root is not given; .* --data.folders.birds"):
        _parse(["--config", "image_folders.yaml"])
    with pytest.raises(ValueError, match=r"data.root is pics and data.folders names dogs; give one of the two"):
        _parse(["--config", "image_folders.yaml", "--data.root", "pics", "--data.folders.dogs", "/d"])


def test_paper_recipe() -> None:
    config = _parse(["--config", packaged_config("paper")])
    model, optimizer = config.model, config.optimizer
    assert (model.adapter_dim, model.drop, model.scale, model.pool_size, model.prompt_length) == (128, 0.5, 0.1, 20, 8)
    assert model.embedding_size == 128
    assert (optimizer.lr, optimizer.factor, optimizer.proxy_lr, optimizer.weight_decay) == (1e-4, 10.0, 1.0, 1e-4)
    assert (optimizer.schedule, optimizer.step_epochs, optimizer.clip, config.epochs) == ("step", 20, 1.0, 100)
    assert config.loss.arguments == {"margin": 0.3, "scale": 32.0, "ema": "per_class"}
    assert (config.data.image_size, config.data.crop_scale, config.data.mean) == (224, 0.2, [0.5, 0.5, 0.5])
    # Resize 256, centre crop 224.
    assert round(224 / config.data.crop_fraction) == 256


def test_few_shot_recipe() -> None:
    config = _parse(["--config", packaged_config("few_shot")])
    assert (config.model.embedding_size, config.model.prompt_length) == (384, 2)
    assert config.loss.name == "ProxyAnchorLoss"
    assert config.data.names is not None
    assert set(config.data.names) <= set(BENCHMARK)
    assert config.epochs == 32 // config.data.shots + 1


def test_demo_configuration_and_command_line() -> None:
    parser = make_parser("demo", "", DemoConfig, [packaged_config("demo")])
    config, _ = parse(
        parser, DemoConfig, ["--train.epochs", "2", "--data_seeds", "[5, 6]", "--train.optimizer.lr", "1e-3"]
    )
    assert (config.train.epochs, config.data_seeds, config.train.optimizer.lr) == (2, [5, 6], 1e-3)
    assert (config.train.global_batch_size, config.train.model.scale) == (64, 1.0)


def test_options_after_the_file_win(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("data: {folders: {a: /a, b: /b}, workers: 0}\nepochs: 7\nmodel: {method: full}\n")
    config = _parse(["--config", str(file), "--epochs", "9"])
    assert (config.epochs, config.model.method, config.data.folders) == (9, "full", {"a": "/a", "b": "/b"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {folders: {a: /a}}\nepoch: 3\n", "epoch"),
        ("data: {folders: {a: /a}}\nepochs: many\n", "epochs"),
        ("data: {folders: {a: /a}}\nmodel: {method: magic}\n", "method"),
        ("data: {folders: {a: /a}}\nglobal_batch_size: 0\n", "global_batch_size is 0"),
        ("data: [\n", "config"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        _parse(["--config", str(file)])


def test_configurations_are_shipped() -> None:
    folder = Path(puma_plugin.__file__).parent / "configs"
    assert {file.stem for file in folder.glob("*.yaml")} == {
        "demo", "image_folders", "paper", "few_shot", "compare", "ablations",
    }  # fmt: skip


@pytest.mark.parametrize("given", [["--config", "paper"], ["--config", "paper.yaml"], ["--config=paper.yaml"]])
def test_configurations_of_the_package_are_found_by_name(given: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _parse([*given, "--data.root", "/data"]).global_batch_size == 180
    # A file of that name in the working directory is meant first.
    (tmp_path / "paper.yaml").write_text("data: {kind: embedded}\nglobal_batch_size: 7\n")
    if given[-1] != "paper":
        assert _parse(given).global_batch_size == 7
    with pytest.raises(ValueError, match=re.escape("papers.yaml is no file; give a YAML file, or the name of one")):
        _parse(["--config", "papers.yaml"])
