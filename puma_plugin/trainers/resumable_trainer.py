"""pml's MetricLossOnly with checkpoints that hold all of a training."""

import contextlib
import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import nn
from torch.nn.parameter import is_lazy

from puma_plugin.samplers import MultiDistributionSampler
from puma_plugin.trainers import fitting, random_states, training_state
from puma_plugin.utils.distributed import is_distributed, rank

# Attributes that hold parts with a state_dict().
_WITH_STATE = ("loss_funcs", "mining_funcs", "optimizers", "lr_schedulers")


class ResumableTrainer(MetricLossOnly):
    """What a training has reached, and how it is written to a file and read again.

    Args:
        models, optimizers, loss_funcs, ...: as pml's trainers take them; a subclass calls ``_begin`` and makes
            ``scaler``, and moves what ``_begin`` sets.
    """

    models: dict[str, nn.Module]
    dataset: Any
    sampler: Any
    scaler: torch.amp.GradScaler

    def _begin(self) -> None:
        self.epoch, self.iteration, self.global_step = 0, 0, 0
        self.history: list[dict[str, Any]] = []
        # Of the step that comes; and of the sampler, how often it was gone through, and batches since.
        self._next_epoch, self._next_iteration = 1, 0
        self._pass, self._consumed = 0, 0
        # Of the epoch that was begun.
        self._sums: dict[str, float] = {}
        self._seconds = 0.0
        self._loaded_random_state: list[dict[str, Any]] | None = None

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write the full state: trainable tensors, proxies and averages, optimizers, schedulers, sampler, generators.

        Every process must call it; rank 0 writes. Between epochs, or from an ``end_of_iteration_hook``.

        Raises:
            ValueError: in the middle of an epoch with another sampler than MultiDistributionSampler.
        """
        if self._next_iteration and not self._can_resume_sampler():
            raise ValueError(
                f"{type(self.sampler).__name__} cannot continue within an epoch: save between epochs, or use "
                "MultiDistributionSampler"
            )
        state = {
            "format": training_state.FORMAT,
            "progress": {
                "epoch": self._next_epoch if not self._next_iteration else self.epoch,
                "iteration": self._next_iteration,
                "pass": self._pass,
                "consumed": self._consumed,
                "global_step": self.global_step,
                "sums": self._sums,
                "seconds": self._seconds,
                "history": self.history,
            },
            "models": {
                name: training_state.model_state(model, name in self.freeze_these)
                for name, model in self.models.items()
            },
            **self._state_of_other_parts(),
            "optimizer_classes": _classes(self.optimizers),
            "optimizer_parameters": self._names_of_parameters(),
            "lr_scheduler_classes": _classes(self.lr_schedulers),
            "random": random_states.random_state(self.models),
            "data_names": fitting.data_names(self.dataset),
        }
        if rank() == 0:
            training_state.save_state(state, path)
        if is_distributed():
            dist.barrier()

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Restore what :meth:`save_checkpoint` wrote; ``train(num_epochs=...)`` then continues with the next batch.

        Build the trainer as in the run that saved it first. With MultiDistributionSampler, and ``seed_items`` or no
        data loader workers, the continued run equals the uninterrupted one exactly. Workers without ``seed_items`` draw
        other random augmentations, as theirs is a state of their own; and of other samplers no state is kept: a pass
        that was begun is not ended, and what they draw is what they draw now. ``amp_dtype`` may be another one; where
        the checkpoint has no loss scale, that of float16 is found anew.

        A trainer that refuses a checkpoint stays as it was.

        Raises:
            FileNotFoundError, ValueError: no checkpoint, or one of another model, loss, optimizer, sampler or data.
        """
        state = training_state.load_state(path)
        self._require_fitting(state)
        models = {
            name: {"tensors": training_state.model_tensors(model, name in self.freeze_these)}
            for name, model in self.models.items()
        }
        before = _copied({"models": models, **self._state_of_other_parts()})
        try:
            self._set_state_of_parts(state)
        except Exception as error:  # of parts that tell only then that the state is of others
            # In the same order, so as far as loading went; that part may refuse its own state, too.
            with contextlib.suppress(Exception):
                self._set_state_of_parts(before)
            raise ValueError(
                f"{path} is of other parts than the trainer has ({type(error).__name__}: {error}); build it as in the "
                "run that saved it"
            ) from error
        self._loaded_random_state = state["random"]
        progress = state["progress"]
        self._next_epoch, self._next_iteration = progress["epoch"], progress["iteration"]
        self._pass, self._consumed = progress["pass"], progress["consumed"]
        self.global_step, self.history = progress["global_step"], progress["history"]
        self._sums, self._seconds = progress["sums"], progress["seconds"]

    def _set_loaded_random_state(self) -> None:
        """At the last moment, as whatever happens in between may draw."""
        if self._loaded_random_state is not None:
            random_states.set_random_state(self._loaded_random_state, self.models)
            self._loaded_random_state = None

    def _can_resume_sampler(self) -> bool:
        return isinstance(self.sampler, MultiDistributionSampler)

    def _state_of_other_parts(self) -> dict[str, Any]:
        return {
            "sampler": self.sampler.state_dict(self._consumed) if self._can_resume_sampler() else None,
            **{name: _states(getattr(self, name)) for name in _WITH_STATE},
            "memories": training_state.memory_places(self.loss_funcs),
            "scaler": self.scaler.state_dict(),
        }

    def _set_state_of_parts(self, state: Mapping[str, Any]) -> None:
        if state["sampler"] is not None:
            self.sampler.load_state_dict(state["sampler"])
        for name, model in self.models.items():
            training_state.load_model_state(model, state["models"][name], name in self.freeze_these)
        for name in _WITH_STATE:
            for key, part in getattr(self, name).items():
                if hasattr(part, "load_state_dict"):
                    part.load_state_dict(state[name][key])
        training_state.set_memory_places(self.loss_funcs, state["memories"])
        if state["scaler"]:  # else written without loss scaling, which then begins as at the start of a run
            self.scaler.load_state_dict(state["scaler"])

    def _names_of_parameters(self) -> dict[str, list[list[str]]]:
        return fitting.names_of_parameters(self.optimizers, {**self.models, **self.loss_funcs})

    def _require_fitting(self, state: Mapping[str, Any]) -> None:
        """ValueError unless the checkpoint is of these parts and of this data."""
        # Checkpoints of earlier versions do not have all of these entries.
        if any(isinstance(loss, nn.Module) and loss.state_dict() for loss in self.loss_funcs.values()):
            fitting.require_same_names(state.get("data_names", {}), fitting.data_names(self.dataset))
        for name in ("models", *_WITH_STATE):
            own = self.models if name == "models" else _states(getattr(self, name))
            if state[name].keys() != own.keys():
                raise ValueError(
                    f"the checkpoint has {name} {sorted(state[name])}, the trainer {sorted(own)}; build the trainer as "
                    "in the run that saved it"
                )
        for name in ("optimizer", "lr_scheduler"):
            kinds = _classes(getattr(self, f"{name}s"))
            if (written := state.get(f"{name}_classes", kinds)) != kinds:
                raise ValueError(
                    f"the checkpoint was written with the {name}s {written}, the trainer has {kinds}; build the "
                    "trainer as in the run that saved it"
                )
        if (state["sampler"] is not None) != self._can_resume_sampler():
            raise ValueError(f"the checkpoint was written with another sampler than {type(self.sampler).__name__}")
        for name, model in self.models.items():
            fitting.require_fitting_model(model, state["models"][name], name, name in self.freeze_these)
        for name in _WITH_STATE:
            for key in state[name]:
                fitting.require_fitting_state(getattr(self, name)[key], state[name][key], f"{name}[{key!r}]")
        # What has no averages yet, as plain SGD never has, knows no parameter from another.
        names = state.get("optimizer_parameters", {})
        known = {key: names[key] for key in names if state["optimizers"][key]["state"]}
        own = self._names_of_parameters()
        fitting.require_same_order(known, {key: own[key] for key in known})


def _classes(parts: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{type(part).__module__}.{type(part).__qualname__}" for name, part in parts.items()}


def _copied(state: Any) -> Any:
    """A state that stays when the parts that gave it change, with its tensors by themselves."""
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copied(value) for value in state]
    if isinstance(state, torch.Tensor):
        return state if is_lazy(state) else state.detach().clone()
    return copy.deepcopy(state)


def _states(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items() if hasattr(part, "state_dict")}
