"""What a Lightning module's forward logs: during an audit it goes nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import nn

_LOGGING: Final[tuple[str, ...]] = ("log", "log_dict")


@contextmanager
def unlogged(model: nn.Module) -> Iterator[None]:
    """Drop what the forwards of Lightning modules log inside the block, to the trainer's metrics and to loggers.

    What they log belongs to a batch of the training: that of a probe set would enter the epoch's mean, and a
    scheduler that watches it would change the training.

    Examples
    --------
    >>> class LightningModule(nn.Module):
    ...     def log(self, name, value):
    ...         raise RuntimeError("there is no trainer")
    >>> module = LightningModule()
    >>> with unlogged(module):
    ...     module.log("loss", 1.0)
    """
    modules = [module for module in model.modules() if _is_lightning(module)]
    methods = [(module, {name: vars(module)[name] for name in _LOGGING if name in vars(module)}) for module in modules]
    loggers = [(owner, owner._loggers) for owner in _owners(modules)]
    try:
        for module in modules:
            vars(module).update(dict.fromkeys(_LOGGING, _nowhere))
        for owner, kept in loggers:
            owner._loggers = [_Unlogged(logger) for logger in kept]
        yield
    finally:
        for module, own in methods:
            for name in _LOGGING:
                vars(module).pop(name, None)
            vars(module).update(own)
        for owner, kept in loggers:
            owner._loggers = kept


def _is_lightning(module: nn.Module) -> bool:
    """Return whether a module is Lightning's, whichever of its two packages it comes from."""
    return any(base.__name__ == "LightningModule" for base in type(module).__mro__)


def _owners(modules: list[nn.Module]) -> list[Any]:
    """Return the trainers, or the Fabric, that lend the modules their loggers; each once."""
    found = [vars(module).get(name) for module in modules for name in ("_trainer", "_fabric")]
    return list({id(owner): owner for owner in found if hasattr(owner, "_loggers")}.values())


def _nowhere(*_: Any, **__: Any) -> None:
    """Take what is logged, and drop it."""


class _Unlogged:
    """A logger that tells its name and folder, and logs nothing."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property
    def experiment(self) -> Any:
        """What takes any call to the logger's own service."""
        return _Nothing()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._logger, name)
        return _nowhere if callable(value) else value


class _Nothing:
    """An object whose every attribute, item and result is such an object again."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop it."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self
