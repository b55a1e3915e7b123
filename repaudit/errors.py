"""Every error that repaudit raises on purpose: each says what was expected, what was found, where, and what to do."""

from __future__ import annotations


class RepauditError(Exception):
    """Base class of all errors raised on purpose by repaudit."""


class ProbeSetError(RepauditError, ValueError):
    """The inputs do not form a probe set."""


class LayerPathError(RepauditError, LookupError):
    """A layer path does not parse, or does not resolve in the model at hand."""


class CaptureError(RepauditError, RuntimeError):
    """A hook did not record what it was asked to record."""


class MissingPartError(RepauditError, ImportError):
    """A library that an extra of the package brings is not installed."""


class StateError(CaptureError):
    """A forward changed what cannot be put back, so that the training would be disturbed; raised in any case."""


class PretrainedError(RepauditError, ValueError):
    """A path or hub id holds no model that can be recorded."""


class RankError(CaptureError):
    """An audit failed on another process."""


class LostRankError(RankError):
    """Another process no longer answers, and the training cannot go on: the processes are out of step."""


class ActivationTypeError(CaptureError, TypeError):
    """A layer returned something that is neither a tensor, a tuple that starts with one, nor a model output."""


class StoreError(RepauditError):
    """Something is wrong with a store, or with a write to it."""


class NotAStoreError(StoreError, ValueError):
    """The path or URL is not a repaudit store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """Nothing exists at this path or URL."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnknownVersionError(StoreError, ValueError):
    """The store has a format version that this library does not know."""


class CorruptStoreError(StoreError, ValueError):
    """A repaudit store is damaged."""


class LeaseError(StoreError, RuntimeError):
    """Another writer holds the model."""


class FingerprintError(StoreError, ValueError):
    """The store was made with another probe set."""


class StepOrderError(StoreError, ValueError):
    """A step is not greater than the last committed one."""


class ActivationError(RepauditError, ValueError):
    """No operator can be computed from the activations: not finite, too few samples, a wrong shape."""


class OperatorError(RepauditError, ValueError):
    """A matrix is not a diffusion operator, or several operators do not fit together."""


class WeightError(RepauditError, ValueError):
    """The merge weights do not fit the operators."""


class AnalysisError(RepauditError, ValueError):
    """The store does not hold what the analysis needs."""


class ForeignPathError(StoreError, ValueError):
    """A key or a symbolic link leads out of the store."""


class LayoutError(StoreError, ValueError):
    """The layers, shapes or dtypes differ from those that the model in the store was created with."""


class ModelExistsError(StoreError, FileExistsError):
    """The model is already in the store, and ``if_exists`` does not allow it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WriterClosedError(StoreError, RuntimeError):
    """The writer accepts no more steps."""


class NotInStoreError(StoreError, KeyError):
    """The store has no such model, layer or step."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StoreWarning(UserWarning):
    """A step could not be stored; the training goes on.

    See Also
    --------
    repaudit.TrajectoryWriter : Emits it with ``on_store_error="warn"``.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", StoreWarning)
    ...     warnings.warn("step 3 of model 'seed0' is not in the store", StoreWarning)
    >>> caught[0].category.__name__
    'StoreWarning'
    """


class AuditWarning(UserWarning):
    """An audit failed; the training goes on without its record.

    See Also
    --------
    repaudit.Recorder : Emits it with ``on_store_error="warn"``.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", AuditWarning)
    ...     warnings.warn("model 'seed0': the audit at step 3 failed", AuditWarning)
    >>> caught[0].category.__name__
    'AuditWarning'
    """


class OperatorWarning(UserWarning):
    """Operators are compared or merged that were not made at one scale.

    See Also
    --------
    repaudit.spread : Emits it.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", OperatorWarning)
    ...     warnings.warn("operators with perplexity 5 ('seed0') and 15 ('seed1')", OperatorWarning)
    >>> caught[0].category.__name__
    'OperatorWarning'
    """


class AlignmentWarning(UserWarning):
    """A student's objective is biased or has no effect; the training goes on.

    See Also
    --------
    repaudit.OperatorMatch : Emits it for batches that are too small for their gauge.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", AlignmentWarning)
    ...     warnings.warn("rows='minibatch': a batch of 16 is too small", AlignmentWarning)
    >>> caught[0].category.__name__
    'AlignmentWarning'
    """


def kind_of(found: object) -> str:
    """Return what something is, with its article, for a message.

    Examples
    --------
    >>> kind_of(1), kind_of("a")
    ('an int', 'a str')
    """
    name = type(found).__name__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
