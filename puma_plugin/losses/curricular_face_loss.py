"""CurricularFace as PUMA uses it, and as published."""

import contextlib
import math
from typing import Any, Literal

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction, WeightRegularizerMixin
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from puma_plugin.losses.whole_batch import refuse_repeated_batch, sees_whole_batch, sum_over_processes

# Keeps sqrt(1 - cos^2) and its gradient finite where an embedding lies on its proxy.
_COSINE_LIMIT = 1 - 1e-6

Ema = Literal["per_class", "global"]


class CurricularFaceLoss(WeightRegularizerMixin, BaseMetricLossFunction):
    """Adaptive curriculum softmax loss (Huang et al., CVPR 2020) with the per-class average of arXiv 2309.08944.

    With cosines c_j between an embedding and the proxies, theta the angle to its own proxy y, margin m and scale s::

        phi  = cos(theta + m)                          if theta <= pi - m, else cos(theta) - m sin(pi - m)
        c'_j = c_j (c_j + t)  if c_j > phi, else c_j   for j != y
        loss = cross_entropy(s * [phi at y, c'_j elsewhere], y)

    t is an exponential moving average of the positive cosine, updated after the loss in training mode, 0 at first;
    cosines that are not finite leave it as it was. All is computed in float32 (float64 for float64 proxies) whatever
    the embeddings' type and autocast say.

    Several processes: inside :class:`~puma_plugin.losses.GatheredLoss`, or itself inside DistributedDataParallel with
    equal local batches; t is then the average over the whole batch on every process. pml's ``DistributedLossWrapper``
    multiplies the proxies' gradient by the number of processes and is refused with an explanation. Embeddings are
    compared with proxies, so pml's ``CrossBatchMemory`` (which compares them with older embeddings) does not apply.

    Args:
        num_classes: number of proxies, over all distributions together.
        embedding_size: D.
        margin: in radians, 0 <= margin < pi.
        scale: > 0.
        ema: "per_class": one t per class, a sample uses that of its class (PUMA). "global": one t (as published).
        momentum: of the moving average, in [0, 1).
        **kwargs: pml's: ``weight_init_func``, ``weight_regularizer``, ``weight_reg_weight``, ``embedding_regularizer``,
            ``embedding_reg_weight``, ``reducer``, ``distance`` (CosineSimilarity() only), ``collect_stats``.

    Attributes:
        W: (D, num_classes) proxies, Kaiming (fan-out) normal.
        t: (num_classes,) or () moving average.

    Raises:
        ValueError: an argument or a label out of range, or reference embeddings given.
    """

    W: torch.nn.Parameter
    t: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.3,
        scale: float = 32.0,
        ema: Ema = "per_class",
        momentum: float = 0.99,
        **kwargs: Any,
    ) -> None:
        if num_classes < 2 or embedding_size < 1:
            raise ValueError(
                f"num_classes must be >= 2 and embedding_size >= 1, got {num_classes} and {embedding_size}"
            )
        if not 0 <= margin < math.pi:
            raise ValueError(
                f"margin is in radians and must lie in [0, pi), got {margin} "
                f"({margin} degrees are {math.radians(margin):.4g})"
            )
        if scale <= 0:
            raise ValueError(f"scale must be > 0, got {scale}")
        if ema not in ("per_class", "global"):
            raise ValueError(f'ema must be "per_class" or "global", got {ema!r}')
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        super().__init__(**kwargs)
        _require_plain_cosine(self.distance)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.margin = margin
        self.scale = scale
        self.ema = ema
        self.momentum = momentum
        self.add_to_recordable_attributes(list_of_names=["num_classes", "margin", "scale"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["avg_angle", "hard_fraction"], is_stat=True)
        self.W = torch.nn.Parameter(torch.empty(embedding_size, num_classes))
        self.weight_init_func(self.W)
        self.register_buffer("t", torch.zeros(num_classes if ema == "per_class" else ()))

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def get_default_weight_init_func(self) -> Any:
        return c_f.TorchInitWrapper(torch.nn.init.kaiming_normal_, mode="fan_out")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of embeddings (B, D) with class labels (B,) int64, reduced by the reducer (mean by default)."""
        if labels is None:
            raise ValueError("CurricularFaceLoss needs labels: integers of shape (batch size,)")
        if ref_emb is not None or ref_labels is not None:
            raise ValueError(
                "CurricularFaceLoss compares embeddings with proxies and takes no reference embeddings; with "
                "CrossBatchMemory use a pair or triplet loss (see CrossBatchMemory.supported_losses())"
            )
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings must have shape (batch size, {self.embedding_size}), got {tuple(embeddings.shape)}"
            )
        self._check_labels(labels)
        with _no_autocast(embeddings):
            return super().forward(self._promote(embeddings), labels, indices_tuple)

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor,
    ) -> dict[str, dict[str, Any]]:
        cosine = self._cosine(embeddings)
        own = labels.unsqueeze(1)
        positive = cosine.gather(1, own)
        phi = self._with_margin(positive)
        t = self.t[labels].unsqueeze(1) if self.ema == "per_class" else self.t
        hard = cosine > phi
        logits = torch.where(hard, cosine * (cosine + t), cosine).scatter(1, own, phi) * self.scale
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        losses = losses * lmu.convert_to_weights(indices_tuple, labels, dtype=losses.dtype)
        if self.collect_stats:
            self._record(positive.detach(), hard.scatter(1, own, False))
        if self.training:
            self._update_average(positive.detach().squeeze(1), labels)
        loss_dict = {
            "loss": {
                "losses": losses,
                "indices": c_f.torch_arange_from_size(embeddings),
                "reduction_type": "element",
            }
        }
        self.add_weight_regularization_to_loss_dict(loss_dict, self.W.t())
        return loss_dict

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Scaled cosines (B, num_classes) without margin, for classification."""
        with _no_autocast(embeddings):
            return self._cosine(self._promote(embeddings)) * self.scale

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, margin={self.margin:g} rad, "
            f"scale={self.scale:g}, ema={self.ema}, momentum={self.momentum:g}"
        )

    def _promote(self, embeddings: Tensor) -> Tensor:
        """Proxies keep their precision; embeddings are raised to it (never the other way round, as pml's losses do)."""
        if self.W.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"the proxies must stay float32 (or float64), but W is {self.W.dtype}: do not call .half()")
        return embeddings.to(device=self.W.device, dtype=torch.promote_types(embeddings.dtype, self.W.dtype))

    def _cosine(self, embeddings: Tensor) -> Tensor:
        proxies = torch.nn.functional.normalize(self.W, dim=0).to(embeddings.dtype)
        return torch.nn.functional.normalize(embeddings, dim=1) @ proxies

    def _with_margin(self, positive: Tensor) -> Tensor:
        bounded = positive.clamp(-_COSINE_LIMIT, _COSINE_LIMIT)
        sine = torch.sqrt(1 - bounded.square())
        return torch.where(
            positive > math.cos(math.pi - self.margin),
            bounded * math.cos(self.margin) - sine * math.sin(self.margin),
            positive - self.margin * math.sin(math.pi - self.margin),
        )

    @torch.no_grad()
    def _update_average(self, positive: Tensor, labels: Tensor) -> None:
        """Move t towards the mean positive cosine of this batch (of each class in it, for "per_class")."""
        if self.ema == "global":
            labels = torch.zeros_like(labels)
        sums = torch.zeros(self.t.numel(), dtype=self.t.dtype, device=positive.device)
        counts = torch.zeros_like(sums)
        sums.index_add_(0, labels, positive.to(sums.dtype))
        counts.index_add_(0, labels, torch.ones_like(positive, dtype=sums.dtype))
        if not sees_whole_batch():
            refuse_repeated_batch(positive, type(self).__name__)
            sums, counts = sum_over_processes(sums), sum_over_processes(counts)
        moved = self.momentum * self.t.view(-1) + (1 - self.momentum) * sums / counts.clamp(min=1)
        # An embedding that overflowed (float16 with loss scaling, whose step is left out) must not stay in the average.
        moves = (counts > 0) & sums.isfinite()
        # A new tensor, not a change in place: a compiled backward pass may still read the t of before.
        self.t = torch.where(moves, moved, self.t.view(-1)).view_as(self.t)

    @torch.no_grad()
    def _record(self, positive: Tensor, hard: Tensor) -> None:
        self.avg_angle = math.degrees(torch.acos(positive.clamp(-1, 1)).mean().item())
        self.hard_fraction = hard.sum().item() / max(hard.numel() - len(hard), 1)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.ndim != 1:
            raise ValueError(
                f"labels must have shape (batch size,), got {tuple(labels.shape)}; of (class, distribution) labels "
                "pass column 0: labels[:, 0]"
            )
        if labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64 class numbers, got {labels.dtype}: call .long()")
        # Reading values would break a compiled graph, so the check is left to eager runs.
        if torch.compiler.is_compiling() or len(labels) == 0:
            return
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1} (num_classes={self.num_classes}), got {low}..{high}: "
                "set num_classes to UnifiedDataset.num_classes, or number the classes from 0"
            )


def _no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(tensor.device.type, enabled=False)


def _require_plain_cosine(distance: Any) -> None:
    """ValueError for another distance than CosineSimilarity(): the loss computes that one by itself."""
    kept = ("forward", "compute_mat", "pairwise_distance")
    if not isinstance(distance, CosineSimilarity) or any(
        getattr(type(distance), name) is not getattr(CosineSimilarity, name) for name in kept
    ):
        raise ValueError(f"CurricularFaceLoss needs distance=CosineSimilarity(), got {distance!r}")
    for name, usual in (("p", 2), ("power", 1)):
        if getattr(distance, name) != usual:
            raise ValueError(
                f"CurricularFaceLoss needs distance=CosineSimilarity(), got one with {name}={getattr(distance, name)}"
            )
