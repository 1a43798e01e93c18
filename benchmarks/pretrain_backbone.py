"""Pretrain the backbone that the embedded benchmark ships: about a quarter of an hour on two CPU cores.

    python benchmarks/pretrain_backbone.py --work runs/pretrain

Task: cosine softmax, among the batch's pairs and over all of 5,155 procedural classes of fourteen families:

* glyph: 1,255 characters of scripts that the benchmark does not use (Canadian syllabics, Arabic, Georgian, Lao,
  braille, hexagrams, ...), none of whose bitmaps resembles one of the benchmark's (correlation below 0.75);
* contour, solid: the benchmark's own generators with other random classes, so the *kind* of picture is known to the
  backbone and the classes are not;
* fractal: iterated function systems of four maps (the benchmark's have three);
* mosaic, voronoi, cells, weave, doodle, polygon, scene, identicon, tangram, plasma: families that the benchmark lacks.

Textures, flags, photos and digits of the benchmark are never seen, nor is any of its nuisances (stripes, lines, salt,
channel swap, gradient, discs). Over everything lies random clutter of other kinds: patches of other pictures, a faint
second picture, soft colour noise, blur, grain. How good the frozen features are, and with it how much room any method
has to improve on them, depends on this list of classes and on the clutter more than on anything else; the figures of
the benchmark hold for this backbone only.

The run is resumable (a checkpoint after every round of 250 steps in --work, refused if the settings differ); after
every round it writes the weights in half precision, with settings, steps, versions and a checksum as metadata, to
--output. Same settings and versions give the same pictures and order; floating-point sums may differ between
processors.
"""

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from pretrain_families import DOMAIN, pretraining_classes
from safetensors.torch import save_file
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional
from tqdm import tqdm

import puma_plugin
from puma_plugin.datasets.embedded.backbone import WEIGHTS, build_backbone, fingerprint, to_input
from puma_plugin.datasets.embedded.canvas import stream, to_bytes
from puma_plugin.utils import atomic_write

SCALE, PAIR_SCALE, CLASS_WEIGHT = 20.0, 12.0, 0.3
ROUND, WARMUP, COOLDOWN = 250, 200, 1500  # steps; a round ends with a checkpoint
SHALLOW_DEPTH, SHALLOW_STEPS = 3, 2500
CLUTTER_START, CLUTTER_FULL = 1500, 4000


class Settings(NamedTuple):
    """What a checkpoint must agree on with the run that continues it."""

    seed: int
    batch: int
    images: int
    lr: float
    processes: int


def render_family(job: tuple[int, str, int]) -> np.ndarray:
    """All pictures of one family, uint8 (classes * images, 32, 32, 3)."""
    seed, family, images = job
    made = pretraining_classes(seed)[family]
    pictures = [to_bytes(c.render(images, stream(DOMAIN, seed, family, i, "images"))) for i, c in enumerate(made)]
    return np.concatenate(pictures)


def build_pool(work: Path, settings: Settings) -> Path:
    """Render the pictures of all families into ``work`` unless they are there; the file's path."""
    file = work / f"pool-{settings.seed}-{settings.images}.npy"
    if not file.exists():
        jobs = [(settings.seed, family, settings.images) for family in pretraining_classes(settings.seed)]
        with ProcessPoolExecutor(settings.processes) as pool:
            parts = list(tqdm(pool.map(render_family, jobs), total=len(jobs), desc="pictures", unit="family"))
        with atomic_write(file) as temporary, open(temporary, "wb") as opened:
            np.save(opened, np.concatenate(parts))
    return file


def clutter(images: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    """Clutter over normalised pictures (B, 3, 32, 32); the class stays that of the picture below.

    ``amount`` in 0..1 scales how often each kind occurs.
    """
    n, _, side, _ = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    def chance(p: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=generator) < p * amount).float()

    out = images * (1 + chance(0.5) * uniform(-0.35, 0.35, n, 3, 1, 1)) + chance(0.5) * uniform(-0.25, 0.25, n, 3, 1, 1)
    # A faint second picture over all of it.
    faint = chance(0.3) * uniform(0.1, 0.45, n, 1, 1, 1)
    out = out + faint * (images[torch.randperm(n, generator=generator)] - out)
    # Soft colour noise: random grids of 2 to 8 cells, enlarged.
    cells = int(torch.randint(2, 9, (), generator=generator))
    noise = torch.randn(n, 3, cells, cells, generator=generator)
    noise = functional.interpolate(noise, size=(side, side), mode="bilinear", align_corners=False)
    out = out + chance(0.3) * uniform(0.1, 0.6, n, 1, 1, 1) * noise
    # Rectangles, either of one colour or cut from another picture.
    axis = torch.arange(side).view(1, side)
    for _ in range(3):
        low = torch.randint(-4, side - 2, (2, n, 1), generator=generator)
        high = low + torch.randint(3, 13, (2, n, 1), generator=generator)
        rows, columns = (axis >= low[0]) & (axis < high[0]), (axis >= low[1]) & (axis < high[1])
        mask = (rows[:, None, :, None] & columns[:, None, None, :]).float() * chance(0.3)
        plain = uniform(-1, 1, n, 3, 1, 1).expand(n, 3, side, side)
        cut = torch.where(chance(0.5) > 0, plain, images[torch.randperm(n, generator=generator)])
        out = out + mask * (cut - out)
    smooth = functional.avg_pool2d(functional.pad(out, (1, 1, 1, 1), mode="replicate"), 3, 1)
    out = out + chance(0.25) * uniform(0, 1, n, 1, 1, 1) * (smooth - out)
    grain = torch.randn(out.shape, generator=generator)
    out = out + chance(0.3) * uniform(0.05, 0.4, n, 1, 1, 1) * grain
    # A window moved by up to three pixels.
    top, left = torch.randint(0, 7, (2,), generator=generator).tolist()
    return functional.pad(out, (3, 3, 3, 3), mode="replicate")[:, :, top : top + side, left : left + side].clamp(-1, 1)


class CosineHead(nn.Module):
    """Two cosine softmaxes over features standardised by the batch: among the batch's pictures and over all classes.

    The first asks each picture for its partner of the same class (N-pair loss; Sohn, NIPS 2016); it learns from the
    first steps on, while a softmax over thousands of classes alone stands still for long. The second brings negatives
    from everywhere. ``export`` folds the standardisation into the backbone's last LayerNorm.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(features, affine=False)
        # Only directions count; short weights turn quickly under Adam.
        self.weight = nn.Parameter(torch.randn(classes, features) * 0.03)

    def forward(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and the two accuracies for features (B, C) in pairs: rows 2i and 2i+1 are of one class."""
        features = functional.normalize(self.standardise(features))
        pairs = (features @ features.T).masked_fill(torch.eye(len(features), dtype=torch.bool), -1.0)
        partner = torch.arange(len(pairs)) ^ 1
        cosine = features @ functional.normalize(self.weight).T
        loss = functional.cross_entropy(PAIR_SCALE * pairs, partner)
        loss = loss + CLASS_WEIGHT * functional.cross_entropy(SCALE * cosine, targets)
        hits = (pairs.argmax(dim=1) == partner).float().mean(), (cosine.argmax(dim=1) == targets).float().mean()
        return loss, *hits


def draw_batch(
    generator: np.random.Generator, families: list[np.ndarray], pictures: int, images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Picture rows and classes of ``pictures`` / 2 pairs: half of the classes from one family, half from all."""
    half = pictures // 4
    single = generator.choice(families[int(generator.integers(len(families)))], half, replace=False)
    rest = np.setdiff1d(np.concatenate(families), single)
    classes = np.concatenate([single, generator.choice(rest, pictures // 2 - half, replace=False)])
    first = generator.integers(0, images, len(classes))
    second = (first + generator.integers(1, images, len(classes))) % images
    return (classes[:, None] * images + np.stack([first, second], axis=1)).ravel(), np.repeat(classes, 2)


def export(model: nn.Module, head: CosineHead, output: Path, settings: Settings, steps: int) -> None:
    """Write the weights in half precision with their origin and checksum."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    standard = head.standardise
    assert standard.running_mean is not None
    assert standard.running_var is not None
    factor = (standard.running_var + standard.eps).rsqrt()
    state["norm.weight"] *= factor
    state["norm.bias"] = (state["norm.bias"] - standard.running_mean) * factor
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items()}
    metadata = {
        "sha256": fingerprint(tensors),
        "steps": str(steps),
        "settings": repr(settings._asdict()),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "puma_plugin": puma_plugin.__version__,
    }
    with atomic_write(output) as temporary:
        save_file(tensors, temporary, metadata)


def average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    """Mean of the gradients over all processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.div_(processes).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def train(rank: int, settings: Settings, rounds: int, work: Path, output: Path, pool: Path, store: str) -> None:
    """One of ``settings.processes`` equal processes: train from scratch or from the checkpoint, export every round."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=settings.processes)
    torch.manual_seed(settings.seed)
    images = np.load(pool, mmap_mode="r")
    model = build_backbone()
    for block in model.blocks[SHALLOW_DEPTH:]:
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)
    head = CosineHead(model.num_features, len(images) // settings.images)
    parameters = [*model.parameters(), *head.parameters()]
    groups = [{"params": model.parameters(), "weight_decay": 0.03}, {"params": head.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    sizes = [len(made) for made in pretraining_classes(settings.seed).values()]
    families = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    total = rounds * ROUND
    checkpoint, first = work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] != settings._asdict():
            raise ValueError(f"{checkpoint} was made with {state['settings']}, this run has {settings._asdict()}")
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["round"]
    model.train()
    blocks = model.blocks
    for number in range(first, rounds):
        # Half the depth costs half the time while there is everything to learn; the rest joins as identity.
        model.blocks = blocks if number * ROUND >= SHALLOW_STEPS else blocks[:SHALLOW_DEPTH]
        draws = np.random.default_rng([settings.seed, number, rank])
        generator = torch.Generator().manual_seed((settings.seed * 1000 + number) * 1000 + rank + 1)
        mean = np.zeros(3)
        bar = tqdm(range(ROUND), f"round {number + 1}/{rounds}", unit="step", mininterval=20, disable=rank > 0)
        for step in bar:
            done = number * ROUND + step
            # Level, then down to 0: a run may continue for more or fewer rounds than it started with.
            rate = min((done + 1) / WARMUP, 1.0, (total - done) / COOLDOWN)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * rate
            rows, targets = draw_batch(draws, families, settings.batch // settings.processes, settings.images)
            # Under clutter from the start nothing is learned: it grows once the classes are told apart without it.
            amount = min(max((done - CLUTTER_START) / (CLUTTER_FULL - CLUTTER_START), 0.0), 1.0)
            batch = clutter(to_input(images[rows]), generator, amount)
            loss, pair_hit, class_hit = head(model(batch), torch.from_numpy(targets))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(parameters, settings.processes)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            keep = min(step, 100) / (min(step, 100) + 1)
            mean = keep * mean + (1 - keep) * np.array([loss.item(), pair_hit.item(), class_hit.item()])
            bar.set_postfix(loss=f"{mean[0]:.2f}", pairs=f"{mean[1]:.3f}", classes=f"{mean[2]:.3f}", refresh=False)
        model.blocks = blocks
        if rank == 0:
            state = {"model": model.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_write(checkpoint) as temporary:
                torch.save({**state, "round": number + 1, "settings": settings._asdict()}, temporary)
            export(model, head, output, settings, (number + 1) * ROUND)
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the embedded benchmark's backbone.")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="pictures and checkpoint")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20, help=f"of {ROUND} steps; may differ when a run continues")
    parser.add_argument("--batch", type=int, default=128, help="pictures per step over all processes")
    parser.add_argument("--images", type=int, default=32, help="pictures per class")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--processes", type=int, default=2, help="each with one thread and its share of the batch")
    arguments = parser.parse_args()
    settings = Settings(**{name: getattr(arguments, name) for name in Settings._fields})
    arguments.work.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    pool = build_pool(arguments.work, settings)
    print(f"pictures after {time.perf_counter() - started:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        job = (settings, arguments.rounds, arguments.work, arguments.output, pool, f"{folder}/store")
        multiprocessing.spawn(train, job, nprocs=settings.processes)
    print(f"wrote {arguments.output} after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
