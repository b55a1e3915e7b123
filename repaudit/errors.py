"""Every error that repaudit raises on purpose: each says what was expected, what was found, where, and what to do."""

from __future__ import annotations


class RepauditError(Exception):
    """Base class of all errors raised on purpose by repaudit."""


class ProbeSetError(RepauditError, ValueError):
    """The inputs do not make a probe set."""


class LayerPathError(RepauditError, LookupError):
    """A layer path does not parse, or does not resolve in the model at hand."""


class CaptureError(RepauditError, RuntimeError):
    """A hook did not record what it was asked to record."""


class StateError(CaptureError):
    """A forward changed what cannot be put back, so that the training would be disturbed; never let pass."""


class PretrainedError(RepauditError, ValueError):
    """A place holds no model that can be recorded."""


class RankError(CaptureError):
    """An audit failed on another process."""


class LostRankError(RankError):
    """Another process no longer answers, and the training cannot go on: the processes are out of step."""


class ActivationTypeError(CaptureError, TypeError):
    """A layer put out something that is neither a tensor, a tuple that starts with one, nor a model output."""


class StoreError(RepauditError):
    """Something is wrong with a store, or with a write to it."""


class NotAStoreError(StoreError, ValueError):
    """The place holds no repaudit store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is nothing at this place."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnknownVersionError(StoreError, ValueError):
    """The store has a format version that this library does not know."""


class CorruptStoreError(StoreError, ValueError):
    """The store is ours, and damaged."""


class LeaseError(StoreError, RuntimeError):
    """Another writer holds the model."""


class FingerprintError(StoreError, ValueError):
    """The store was made with another probe set."""


class StepOrderError(StoreError, ValueError):
    """A step is not greater than the last committed one."""


class ActivationError(RepauditError, ValueError):
    """Activations from which no operator can be computed: not finite, too few samples, a wrong shape."""


class OperatorError(RepauditError, ValueError):
    """A matrix that is no diffusion operator, or operators that do not go together."""


class WeightError(RepauditError, ValueError):
    """Merge weights that do not fit the operators."""


class AnalysisError(RepauditError, ValueError):
    """The store holds too little, or something else, than the analysis asked for."""


class ForeignPathError(StoreError, ValueError):
    """A key or a symbolic link leads out of the store."""


class LayoutError(StoreError, ValueError):
    """The layers, shapes or dtypes at hand are not those that the model in the store was made with."""


class ModelExistsError(StoreError, FileExistsError):
    """The model is already in the store, and the writer was told not to touch it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WriterClosedError(StoreError, RuntimeError):
    """The writer takes no more steps."""


class NotInStoreError(StoreError, KeyError):
    """The store has no such model, layer or step."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StoreWarning(UserWarning):
    """A step could not be stored; the training goes on."""


class AuditWarning(UserWarning):
    """An audit failed; the training goes on without its record."""
