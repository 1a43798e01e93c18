"""Two and four processes (gloo) do what one process does on the whole batch."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import puma_plugin

WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    specification = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, list[Any]]:
    """Number of processes, their folder, and what each found."""
    world = request.param
    folder = tmp_path_factory.mktemp(f"world{world}")
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(rank), str(world)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=1200)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return world, folder, [torch.load(folder / f"results{r}.pt", weights_only=False) for r in range(world)]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


LOSSES = [
    "curricular per class",
    "curricular global, mined",
    "ProxyAnchor",
    "MultiSimilarity, mined",
    "multiple",
    "memory",
]


@pytest.mark.parametrize("name", LOSSES)
def test_gathered_loss_equals_one_process(worker: ModuleType, run: tuple[int, Path, list[Any]], name: str) -> None:
    torch.manual_seed(0)
    expected = worker.train(name, 0, 1)
    for found in run[2]:
        result = found["train"][name]
        close(result["values"], expected["values"])
        assert result["gradients"].keys() == expected["gradients"].keys()
        assert any("adapter" in n for n in result["gradients"])
        assert any("prompt_pool" in n for n in result["gradients"])
        close(result["gradients"], expected["gradients"])
        close(result["state"], expected["state"])
    if name.startswith("curricular"):
        assert expected["state"]["loss.t"].abs().max() > 0


def test_loss_inside_ddp_on_local_batches_equals_one_process(
    worker: ModuleType, run: tuple[int, Path, list[Any]]
) -> None:
    # The mean over equal local batches is the mean over the whole; the average t is that of all processes.
    expected = worker.train("curricular per class", 0, 1)
    for found in run[2]:
        result = found["ddp loss"]["curricular per class"]
        close(result["gradients"], expected["gradients"])
        close(result["state"], expected["state"])
    # A loss that compares the items of a batch with each other, or sums over classes present, is another one locally.
    local = run[2][0]["ddp loss"]["ProxyAnchor"]["values"][0]
    assert (local - worker.train("ProxyAnchor", 0, 1)["values"][0]).abs() > 1e-3


def test_local_batches_may_differ_in_size(worker: ModuleType, run: tuple[int, Path, list[Any]]) -> None:
    expected = worker.uneven(0, 1)
    for found in run[2]:
        close(found["uneven"], expected)


@pytest.mark.parametrize("seeds", ["same", "different"])
def test_random_draws_are_the_same_in_every_process(run: tuple[int, Path, list[Any]], seeds: str) -> None:
    first, *others = (found["random draws"][seeds] for found in run[2])
    for other in others:
        assert torch.equal(other["values"], first["values"])
        assert torch.equal(other["beta"], first["beta"])
    # New ones in every step.
    assert len(first["values"][1::2].unique()) > 1
    # Generators in the same state are drawn from, as in one process; else rank 0 draws a seed, and the others nothing.
    moved = [found["random draws"][seeds]["moved"] for found in run[2]]
    assert moved == ([True] * run[0] if seeds == "same" else [True] + [False] * (run[0] - 1))


def test_each_process_goes_on_with_its_own_random_numbers(run: tuple[int, Path, list[Any]]) -> None:
    assert all(found["taken back"] for found in run[2])


def test_pmls_wrapper_multiplies_the_proxies_gradient_and_is_refused(run: tuple[int, Path, list[Any]]) -> None:
    world, _, results = run
    for found in results:
        assert float(found["refusals"]["factor"]) == world
        assert "GatheredLoss" in found["refusals"]["pml wrapper"]
        assert f"by {world}" in found["refusals"]["pml wrapper"]
        assert "GatheredLoss(loss, miner=...)" in found["refusals"]["local indices"]


def test_trainer_refuses_what_each_process_would_train_alone(run: tuple[int, Path, list[Any]]) -> None:
    world, _, results = run
    for found in results:
        refusals = found["refusals"]
        for name in ("bare loss", "bare loss beside a gathered one"):
            assert f"each of {world} processes would train its own" in refusals[name]
            assert ": use puma_plugin.losses.GatheredLoss(loss)" in refusals[name]
        for name, weight in (("bare trunk", "blocks.0.adapter1.down"), ("bare head", "1.linear.weight")):
            assert f"trained by {world} processes, each of which would train its own" in refusals[name]
            assert f"{weight}: wrap it in torch.nn.parallel.DistributedDataParallel, not in FSDP (or" in refusals[name]
        right = {"bare trunk that is frozen", "loss in DDP", "loss without weights", "gathered loss among several"}
        assert right.isdisjoint(refusals)


def test_sharded_weights_are_refused_and_can_be_saved_once_gathered(
    worker: ModuleType, run: tuple[int, Path, list[Any]]
) -> None:
    _, folder, results = run
    for rank, found in enumerate(results):
        said = found["sharded"]
        assert "models['trunk'] is sharded (its trunk." in said["trainer"]
        assert ": use torch.nn.parallel.DistributedDataParallel for models and" in said["trainer"]
        assert "loss_funcs['metric_loss'] is sharded (its proxies, as by fully_shard)" in said["loss"]
        for caller in ("save", "load"):
            message = said[caller]
            assert message.startswith(f"{caller}_adapter() needs whole weights, but trunk.")
            assert "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))" in message
        _, model = worker.build()
        assert puma_plugin.load_adapter(model, folder / f"gathered{rank}.safetensors") is model


def test_trainer_refuses_processes_that_draw_the_same_batches(run: tuple[int, Path, list[Any]]) -> None:
    world, _, results = run
    everyone = list(range(world))
    for found in results:
        said = found["draws alike"]
        for name, ranks, sampler in (
            ("shuffled alike", everyone, "RandomSampler"),
            ("m per class alike", everyone, "MPerClassSampler"),
            ("batches alike", everyone, "BatchSampler"),
            ("each the whole of ours", everyone, "MultiDistributionSampler"),
            ("first and last alike", [0, world - 1], "RandomSampler"),
            ("last two alike", [world - 2, world - 1], "RandomSampler"),
        ):
            steps, message, _ = said.pop(name)
            assert f"ranks {ranks} draw the same items from {sampler}, and the loss would see each of" in message
            assert f"{len(ranks)} times: use MultiDistributionSampler(labels, batch_size, m=...), which" in message
            assert steps == 0
        # Four items may be the same by chance, eight are not.
        assert said.pop("small batches alike")[0] == 1
        assert {(steps, message) for steps, message, _ in said.values()} == {(2, "")}
        # Nobody knows whether other images are the same ones in other crops. One process says so.
        warned = said["alike in crops of its own"][2]
        assert bool(warned) == (found is results[0])
        if warned:
            assert f"ranks {everyone} draw the same positions from RandomSampler, of items with the same la" in warned
        for name in ("shuffled by rank", "by rank in crops of its own", "shared out"):
            assert said[name][2] == ""


def test_evaluation_gathers_every_item_once(worker: ModuleType, run: tuple[int, Path, list[Any]]) -> None:
    expected = worker.evaluate(1)
    for found in run[2]:
        close(found["evaluate"]["embeddings"], expected["embeddings"])
        for way in ("embed", "tester"):
            close(found["evaluate"]["normed"][way], expected["normed"][way])
        assert found["evaluate"]["result"] == expected["result"]
        assert found["evaluate"]["tester"] == expected["tester"]
    # Under `if rank == 0:`, as many scripts have it.
    assert run[2][0]["evaluate"]["alone"] == run[2][0]["evaluate"]["embedded alone"] == expected["tester"]


def test_trainer_equals_one_process_and_resumes_with_another_number(
    worker: ModuleType, run: tuple[int, Path, list[Any]]
) -> None:
    world, folder, results = run
    whole = worker.run_trainer(folder, 1, 2)
    for found in results:
        close(found["trainer"]["losses"], whole["losses"])
        close(found["trainer"]["state"], whole["state"])
    # Random transforms in the workers of the loaders are others in each process.
    assert len({found["trainer"]["seed"] for found in results}) == world
    if world == 2:
        longer = worker.run_trainer(folder, 1, 3)
        resumed = worker.run_trainer(folder, 1, 3, resume=True)
        close(resumed["state"], longer["state"])
