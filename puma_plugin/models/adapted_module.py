"""Giving an instance a subclass of its own class, as ``torch.nn.utils.parametrize`` does."""

from typing import Any, TypeVar

from torch import nn

from puma_plugin.models.freezing import keep_in_eval

Self = TypeVar("Self", bound="AdaptedModule")


class AdaptedModule(nn.Module):
    """Base of the mixins that :func:`change_class` puts before a module's own class.

    It keeps the frozen modules in evaluation mode, and makes pickle and deepcopy work although the class is made at run
    time: an instance is rebuilt from the two importable classes that its class was made of.
    """

    _made_of: tuple[type["AdaptedModule"], type[nn.Module]]

    def train(self: Self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but what is frozen stays in evaluation mode."""
        super().train(mode)
        keep_in_eval(self)
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced = super().__reduce_ex__(max(int(protocol), 2))
        return (_new_instance, self._made_of, *reduced[2:])


_classes: dict[tuple[type, type], type[Any]] = {}


def adapted_class(mixin: type[AdaptedModule], original: type[nn.Module]) -> type[Any]:
    """The class ``Adapted<Original>`` of (mixin, original); one per pair, so that equal models have equal classes."""
    if (mixin, original) not in _classes:
        body = {"__module__": __name__, "__doc__": mixin.__doc__, "_made_of": (mixin, original)}
        _classes[mixin, original] = type(f"Adapted{original.__name__}", (mixin, original), body)
    return _classes[mixin, original]


def _new_instance(mixin: type[AdaptedModule], original: type[nn.Module]) -> nn.Module:
    cls = adapted_class(mixin, original)
    return nn.Module.__new__(cls)


def change_class(module: nn.Module, mixin: type[AdaptedModule]) -> None:
    """Put ``mixin`` before the class of ``module``; its parameters and their names stay."""
    module.__class__ = adapted_class(mixin, type(module))


def restore_class(module: Any) -> None:
    """Undo :func:`change_class`."""
    module.__class__ = original_class(module)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that ``module`` had before :func:`change_class`; its class if that never happened."""
    return module._made_of[1] if isinstance(module, AdaptedModule) else type(module)
