"""The settings of `puma train` and `puma evaluate`: dataclasses, filled from YAML and the command line.

Every class checks its own values when it is made, before any work is done.
"""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

ModelMethod = Literal[
    "puma", "adapters", "adaptformer", "lora", "vpt_shallow", "vpt_deep", "full", "separate", "linear", "frozen"
]

# The files of a run: all that is needed to go on, the trained weights, the settings, the classes trained on.
CHECKPOINT, WEIGHTS, SETTINGS, CLASSES = "checkpoint.pt", "model.safetensors", "config.json", "classes.json"


def require(condition: bool, message: str) -> None:
    """ValueError with the message where the condition does not hold."""
    if not condition:
        raise ValueError(message)


@dataclass
class DataConfig:
    """Which images, and how they are split.

    Attributes:
        kind: "embedded" (the benchmark that comes with the package), "benchmark" (the eight datasets of the paper as
            published, see `puma datasets list`), "image_folders" or "manifest" (a CSV or Parquet table).
        root: "benchmark": the folder that holds the datasets' folders. "image_folders": instead of `folders`, one that
            holds a folder per distribution. "manifest": the folder its paths are relative to; null: the manifest's.
        names: the distributions to use; null for all that are there.
        folders: name of each distribution -> its folder. The folder holds one subfolder per class, or `train/` and
            `test/` with one subfolder per class each, or `query/` and `gallery/` in place of `test/`. Beside these no
            other folder, such as `val/`, may hold images.
        manifest: the table, with the columns path, label and, if wanted, split and distribution.
        split: "folders" (the data says what trains and what tests: train/ and test/, or the column split), "classes"
            (class-disjoint split), "auto" (folders where it can be, else classes) or "all" (every class is in the test;
            evaluation only). "classes" and "all" join what lies in folders of splits, by the names of the classes. The
            benchmark's splits are fixed.
        bad_images: "raise" for missing or unreadable images (`puma train` opens the test images once before it begins),
            or "skip": every image is opened once at the start, and those that cannot be read are left out, counted, and
            listed in metrics.json.
        known_bad: with "skip": a report of `puma datasets verify --open-images --report FILE`, so that the images need
            not be opened again.
        min_images: images that each class of a manifest or of image folders must have.
        small_classes: "raise" for classes with fewer, or "skip": their images are left out, counted, and listed in
            metrics.json, before classes are split.
        check_counts: compare the benchmark's class counts with the published ones; false for a reduced copy.
        test_fraction: share of the classes that goes to the test in a class-disjoint split; the first classes in
            sorted order train, as the metric learning benchmarks do, unless `shuffle_classes` is true.
        shuffle_classes: draw the test classes with `seed` instead of taking the last.
        validation_fraction: share of the training classes held out of training to judge progress; 0 holds out none.
        shots: keep this many images per training class, drawn with `seed` (few-shot); null keeps all.
        few_shot: or a file of `puma datasets few-shot`, which names the images.
        seed: of the embedded images, of a shuffled class split, of the classes held out and of the few-shot draw. What
            is drawn of one distribution does not depend on the others.
        starved: embedded benchmark only: the small distributions keep a quarter of their training images.
        domain: embedded benchmark only: "benchmark", or "tuning" (other classes, to choose settings on; its test
            classes are the held-out ones).
        augmentation: "random_resized_crop" (with horizontal flip), "pad_crop" (shift by an eighth) or "none".
        flip: horizontal flips in "random_resized_crop". Turn it off where mirrored classes differ (text, digits).
        image_size: side in pixels of the network's input; null takes the backbone's.
        crop_scale: smallest share of the picture that "random_resized_crop" may keep.
        crop_fraction: evaluation: share of the resized picture that the centre crop keeps (224 / 256 in the paper).
        interpolation: "bicubic" or "bilinear".
        mean, std: normalisation per channel; null takes the backbone's own.
        workers: processes that load images (0: in the training process).
    """

    kind: Literal["embedded", "benchmark", "image_folders", "manifest"] = "image_folders"
    root: str | None = None
    names: list[str] | None = None
    folders: dict[str, str] = field(default_factory=dict)
    manifest: str | None = None
    split: Literal["auto", "folders", "classes", "all"] = "auto"
    bad_images: Literal["raise", "skip"] = "raise"
    known_bad: str | None = None
    min_images: int = 2
    small_classes: Literal["raise", "skip"] = "raise"
    check_counts: bool = True
    test_fraction: float = 0.5
    shuffle_classes: bool = False
    validation_fraction: float = 0.1
    shots: int | None = None
    few_shot: str | None = None
    seed: int = 0
    starved: bool = True
    domain: Literal["benchmark", "tuning"] = "benchmark"
    augmentation: Literal["random_resized_crop", "pad_crop", "none"] = "random_resized_crop"
    flip: bool = True
    image_size: int | None = None
    crop_scale: float = 0.2
    crop_fraction: float = 0.875
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: list[float] | None = None
    std: list[float] | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        self.folders = {str(name): folder for name, folder in self.folders.items()}  # a year is a number to YAML
        self._check_kind()
        require(
            self.kind == "embedded" or self.domain == "benchmark",
            f"data.domain is {self.domain} with data.kind {self.kind}; only the embedded benchmark has a tuning domain",
        )
        require(0.0 < self.test_fraction < 1.0, f"data.test_fraction is {self.test_fraction}; it must be in (0, 1)")
        require(
            0.0 <= self.validation_fraction < 1.0,
            f"data.validation_fraction is {self.validation_fraction}; it must be in [0, 1)",
        )
        require(
            self.known_bad is None or self.bad_images == "skip",
            "data.known_bad is given with data.bad_images raise; set data.bad_images to skip, or remove it",
        )
        require(self.min_images >= 1, f"data.min_images is {self.min_images}; give 1 or more")
        require(
            self.small_classes == "raise" or self.kind in ("image_folders", "manifest"),
            f"data.small_classes is {self.small_classes}, but the classes of data.kind {self.kind} are fixed; "
            "remove it",
        )
        require(
            self.names is None or len(set(self.names)) == len(self.names) > 0,
            f"data.names is {self.names}; give different names, one or more, or null for all",
        )
        require(self.shots is None or self.shots >= 1, f"data.shots is {self.shots}; give 1 or more, or null for all")
        require(0.0 < self.crop_scale <= 1.0, f"data.crop_scale is {self.crop_scale}; it must be in (0, 1]")
        require(0.0 < self.crop_fraction <= 1.0, f"data.crop_fraction is {self.crop_fraction}; it must be in (0, 1]")
        require(self.workers >= 0, f"data.workers is {self.workers}; give 0 or more")
        require(
            self.image_size is None or self.image_size >= 1,
            f"data.image_size is {self.image_size}; give 1 or more, or null for the network's own",
        )
        require(self.std is None or min(self.std, default=0) > 0, f"data.std is {self.std}; it must be positive")
        for name, values in (("mean", self.mean), ("std", self.std)):
            require(values is None or len(values) == 3, f"data.{name} is {values}; give three numbers, one per channel")

    def _check_kind(self) -> None:
        """Each kind of data has what it needs and nothing that it would ignore."""
        require(
            self.kind != "image_folders" or bool(self.folders) or self.root is not None,
            "data.folders is empty and data.root is not given; name at least one distribution, as in "
            "`folders: {birds: /data/birds}` or --data.folders.birds /data/birds, or give data.root, a folder that "
            "holds a folder per distribution",
        )
        require(
            self.kind != "image_folders" or not self.folders or self.root is None,
            f"data.root is {self.root} and data.folders names {', '.join(self.folders)}; give one of the two: "
            "data.root for all the folders in it, or data.folders for these only",
        )
        require(
            self.kind != "benchmark" or self.root is not None,
            "data.root is missing; give the folder that holds the datasets, see `puma datasets list`",
        )
        require(
            self.kind != "manifest" or self.manifest is not None,
            "data.manifest is missing; give a CSV or Parquet file with the columns path and label",
        )
        needed = {
            "embedded": (),
            "benchmark": ("root", "names"),
            "image_folders": ("folders", "root", "names"),
            "manifest": ("manifest", "root", "names"),
        }
        for name in ("folders", "root", "names", "manifest"):
            require(
                name in needed[self.kind] or not getattr(self, name),
                f"data.{name} is given with data.kind {self.kind}, which has none; remove it, or set another data.kind",
            )


@dataclass
class ModelConfig:
    """The backbone and what is trained on it.

    Attributes:
        backbone: a timm model name, or "embedded" for the tiny ViT that comes with the package.
        weights: "pretrained" (through timm, which downloads them), "none" (random), or the path of a local file
            (.safetensors, or a .pth/.bin state dict).
        method: what is trained beside the head, the same for all but the last two: "puma" (stochastic adapters and
            prompt pool), "adapters" (PUMA without the pool), "adaptformer" (the same adapters without drop), "lora"
            (low-rank updates of the attention, by Hugging Face peft), "vpt_shallow" and "vpt_deep" (prompt tokens, the
            same for every image), "full" (every weight), "separate" (a fully trained model for each distribution),
            "linear" (the head only) or "frozen" (nothing; the backbone's pooled output is the embedding).
        adapter_dim, drop, scale, trainable_scale, init: of the stochastic adapters.
        blocks: indices of the blocks with adapters; null for all, an empty list for prompts only.
        pool_size, prompt_length: of the prompt pool; pool_size 0 means no pool. VPT has prompt_length tokens as well.
        lora_rank, lora_alpha: the update is `lora_alpha / lora_rank` times B A, with `lora_rank` columns in B.
        embedding_size: width of the embedding.
    """

    backbone: str = "vit_small_patch16_224.augreg_in21k_ft_in1k"
    weights: str = "pretrained"
    method: ModelMethod = "puma"
    adapter_dim: int = 128
    drop: float = 0.5
    scale: float = 0.1
    trainable_scale: bool = False
    init: Literal["default", "paper"] = "default"
    blocks: list[int] | None = None
    pool_size: int = 20
    prompt_length: int = 8
    lora_rank: int = 16
    lora_alpha: float = 16.0
    embedding_size: int = 128

    def __post_init__(self) -> None:
        require(0.0 <= self.drop < 1.0, f"model.drop is {self.drop}; it is a probability in [0, 1)")
        for name in ("adapter_dim", "embedding_size", "prompt_length", "lora_rank"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name} is {value}; give 1 or more")
        require(self.pool_size >= 0, f"model.pool_size is {self.pool_size}; give 0 (no pool) or more")
        require(self.lora_alpha > 0, f"model.lora_alpha is {self.lora_alpha}; it must be positive")
        require(
            bool(self.blocks is None or self.blocks or self.has_pool),
            f"model.blocks is empty and method {self.method} has no prompts, so nothing would be trained; give blocks",
        )
        require(bool(self.backbone), "model.backbone is empty; give a timm model name, or embedded")

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.method != "frozen"

    @property
    def is_separate(self) -> bool:
        """One model per distribution instead of one for all."""
        return self.method == "separate"

    @property
    def has_adapters(self) -> bool:
        """Whether the method is PUMA, or PUMA without some of its parts."""
        return self.method in ("puma", "adapters", "adaptformer")

    @property
    def has_pool(self) -> bool:
        """Whether the model has a pool of prompts."""
        return self.effective_pool_size > 0

    @property
    def has_visual_prompts(self) -> bool:
        """Whether the method is VPT."""
        return self.method in ("vpt_shallow", "vpt_deep")

    @property
    def effective_drop(self) -> float:
        """What `drop` is with this method."""
        return 0.0 if self.method == "adaptformer" else self.drop

    @property
    def effective_pool_size(self) -> int:
        """What `pool_size` is with this method."""
        return self.pool_size if self.method == "puma" else 0


@dataclass
class LossConfig:
    """The metric loss.

    Attributes:
        name: "CurricularFaceLoss" (of this package) or the name of any pytorch-metric-learning loss. The paper compares
            TripletMarginLoss, MultiSimilarityLoss, MarginLoss, ProxyAnchorLoss, CosFaceLoss, ArcFaceLoss,
            SoftTripleLoss and CurricularFaceLoss; these have their usual arguments and miner.
        arguments: passed to the loss, in place of its usual ones; `num_classes` and `embedding_size` are filled in
            where the loss takes them. A `distance` is given by its class name.
        miner: what chooses the pairs or triplets of a batch: "usual" (the loss's own, if it has one), "none", or the
            name of a pytorch-metric-learning miner.
        miner_arguments: passed to the miner.
        images_per_class: of a batch; null takes what the loss needs: 4 for losses that compare the images of a batch
            with each other, any number for those that compare them with proxies.
    """

    name: str = "CurricularFaceLoss"
    arguments: dict[str, Any] = field(default_factory=dict)
    miner: str = "usual"
    miner_arguments: dict[str, Any] = field(default_factory=dict)
    images_per_class: int | None = None

    def __post_init__(self) -> None:
        require(bool(self.name), "loss.name is empty; give the name of a loss")
        require(
            self.images_per_class is None or self.images_per_class >= 1,
            f"loss.images_per_class is {self.images_per_class}; give 1 or more, or null for what the loss needs",
        )


@dataclass
class OptimizerConfig:
    """AdamW and its schedule. Learning rates are `lr` times a factor.

    Attributes:
        lr: base learning rate, that of a fully trained backbone.
        factor: on `lr`, for adapters, prompts and the head.
        proxy_lr: learning rate of the loss's own weights, not multiplied (the paper's 10^4 x 1e-4 = 1.0).
        weight_decay: decoupled weight decay, on every group.
        clip: gradients are clamped to +-clip by value; null does not clip.
        schedule: "cosine" (to 0 over the run, per step), "step" (halved every `step_epochs`) or "constant".
        step_epochs: see `schedule`.
        warmup_epochs: the rates rise linearly from 0 over so many epochs (fractions are allowed) before the schedule.
    """

    lr: float = 1e-4
    factor: float = 10.0
    proxy_lr: float = 1.0
    weight_decay: float = 1e-4
    clip: float | None = 1.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_epochs: int = 20
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "factor", "proxy_lr"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name} is {value}; it must be positive")
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}; give 0 or more")
        require(self.clip is None or self.clip > 0, f"optimizer.clip is {self.clip}; give a positive number, or null")
        require(self.step_epochs >= 1, f"optimizer.step_epochs is {self.step_epochs}; give 1 or more")
        require(self.warmup_epochs >= 0, f"optimizer.warmup_epochs is {self.warmup_epochs}; give 0 or more")


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        data, model, loss, optimizer: see their classes.
        epochs: passes over the joined training sets.
        global_batch_size: images per optimizer step, of all processes together, whatever their number; the loss sees
            them all. Each process takes an equal share. At most as many as there are training images; only a separate
            model of a smaller distribution has all of its images in each batch instead.
        max_batch_per_process: images that a process passes through the network at once in training; null: its whole
            share. A larger share goes through in pieces, whose activations are computed a second time (activation
            checkpointing): less memory, one forward pass more, the same result for every loss.
        sampling: "proportional" (plain shuffle of the joined sets, the paper's) or "balanced" (each distribution
            equally often).
        seed: initial weights, order of the images, augmentation and gates.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1", ...
        precision: "fp32", "bf16" or "fp16" (autocast; fp16 with loss scaling, and slow on a CPU). In fp16 the number of
            processes may decide which early steps overflow and are left out: each sums its own images' gradients.
        compile: train the network under torch.compile. The first step then takes up to some minutes; what the others
            gain hangs on network and machine, and `--dry-run` tells it. The same result up to rounding. Needs a C++
            compiler, on GPUs too. The backbone under a linear head is not compiled.
        threads: CPU threads of the training process; null leaves PyTorch's choice. Beside other busy processes fewer
            are faster, or OMP_WAIT_POLICY=passive in the environment: threads that wait for each other spin otherwise.
        validate_every: epochs between two figures on the held-out training classes.
        checkpoint_minutes: checkpoint.pt is written after every epoch, and within an epoch when the last one is so many
            minutes old, so that a run that is killed loses no more; null: after epochs only.
        evaluation_batch_size: images per forward pass of each process when embedding.
        process_timeout: seconds that one of several processes waits for the others before it gives up; a process that
            died is noticed at once. The longest wait is for the first process, while it opens the images
            (`data.bad_images`), searches the held-out classes or writes a checkpoint.
        out: folder for checkpoint, metrics.json and the report.
        report: write report.html at the end.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 100
    global_batch_size: int = 180
    max_batch_per_process: int | None = None
    sampling: Literal["proportional", "balanced"] = "proportional"
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    threads: int | None = None
    validate_every: int = 1
    checkpoint_minutes: float | None = 10.0
    evaluation_batch_size: int = 256
    process_timeout: float = 1800.0
    out: str = "runs/train"
    report: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "global_batch_size", "validate_every", "evaluation_batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; give 1 or more")
        require(
            self.max_batch_per_process is None or self.max_batch_per_process >= 1,
            f"max_batch_per_process is {self.max_batch_per_process}; give 1 or more, or null for the whole share",
        )
        require(self.threads is None or self.threads >= 1, f"threads is {self.threads}; give 1 or more, or null")
        require(
            self.checkpoint_minutes is None or self.checkpoint_minutes >= 0,
            f"checkpoint_minutes is {self.checkpoint_minutes}; give 0 (every step) or more, or null (after epochs)",
        )
        require(bool(self.out), "out is empty; give a folder")
        self.out = os.path.expanduser(self.out)  # which no shell does in --out=~/runs
        require(
            self.process_timeout > 0, f"process_timeout is {self.process_timeout}; give a positive number of seconds"
        )
        embedded = self.model.backbone == "embedded"
        require(
            not embedded or self.model.weights in ("pretrained", "none"),
            f"model.weights is {self.model.weights!r} with the embedded backbone; give pretrained or none",
        )


@dataclass
class EvaluateConfig(TrainConfig):
    """An evaluation (`puma evaluate`): the settings of the training run, and how its retrieval is counted.

    Attributes:
        protocol: "honest" (a hit needs the same distribution and class, a query never finds itself, queries without a
            positive are left out) or "paper-code" (what the authors' published code counts, to compare with their
            numbers).
        ks: the k of the recalls, 1 among them; In-shop and Stanford Online Products have their usual ones besides.
        out: folder for metrics.json and the report; in the folder of a training, its subfolder evaluation.
    """

    protocol: Literal["honest", "paper-code"] = "honest"
    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    out: str = "runs/evaluate"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 in self.ks and all(k >= 1 for k in self.ks),
            f"ks is {self.ks}; give whole numbers from 1, and 1 among them, as in --ks '[1, 10, 100]': "
            "the report's main figures are R@1",
        )
