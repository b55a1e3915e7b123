"""The keywords that the recorder and the trainers' callbacks share, checked before anything is forwarded or written."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Final, Protocol, TypedDict, get_args, runtime_checkable

import torch
from torch import nn

from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.capture.record.recorded_operators import ACTIVATIONS, Record, check_record
from repaudit.capture.record.trigger import (
    AT_END,
    EVERY_N_EPOCHS,
    ON_CHECKPOINT,
    ON_VALIDATION_END,
    AuditTrigger,
    whole_number,
)
from repaudit.store.format.encoding import CodecName
from repaudit.store.write.commit import IfExists
from repaudit.store.write.retrying import OnStoreError

_ONLY_TRAINERS_KNOW: Final = (EVERY_N_EPOCHS, ON_CHECKPOINT, ON_VALIDATION_END, AT_END)


@runtime_checkable
class Tracker(Protocol):
    """What is told of every audit; :class:`repaudit.Track` is one."""

    def prepare(self, writing: Any) -> None:
        """Try before the first step of a training that is written to a store whether all is there."""

    def audited(self, model: str, step: int, activations: Mapping[str, Any]) -> None:
        """Take an audit, and return at once."""

    def news(self) -> list[tuple[int, dict[str, float]]]:
        """Return what has become known since the last call: step, and numbers by name."""

    def close(self) -> None:
        """Wait until all is known."""


class AuditOptions(TypedDict, total=False):
    """Keywords of :class:`repaudit.Recorder` and of the callbacks; the defaults are :data:`DEFAULTS`.

    Parameters
    ----------
    batch_size : int
        Samples per forward (64); the result does not depend on it.
    forward : function, optional
        What to call with a batch's inputs instead of the network: its parameters are the inputs' names, or one for all
        of them as a mapping. Needed where the network has no forward that takes them.
    gauge : DiffusionGauge or other callable, optional
        Computes operators at every audit, which are kept in ``trajectory``, unless sketches are recorded.
    metrics : function, optional
        From the activations of an audit, by layer, to numbers by name, which the trainer's loggers get, together with
        the audit's seconds and bytes, and a recorder has in ``latest``; :class:`repaudit.GeometryMetrics` measures each
        layer's geometry. Where it fails, the audit is recorded without, with a warning. An object may also have
        ``check_probe_set(probe_set)``, and ``of_record(recorded)``, which returns what measures a model whose first and
        last audit are recorded already.
    track : repaudit.Track, optional
        Compares every audit with the other models of a store, in a thread of its own.
    durable : bool
        Whether each commit is forced to the device (True).
    on_store_error : {"warn", "raise"}
        ``"warn"``: a failure of an audit or of the store warns and is counted, and the training goes on; ``"raise"``.
        What is wrong before the first audit (paths, shapes, an unwritable store) raises in any case.
    record : {"activations", "operators", "both", "sketches"}
        With a ``gauge``, what the store gets: ``"activations"``; ``"operators"`` instead, layers
        ``<layer>@operator`` on (step, sample, neighbor) whose attributes hold the gauge's parameters; or ``"both"``.
        Sparse operators are compressed: they take about 10 bytes per entry that is not 0. Or ``"sketches"`` of them,
        layers ``<layer>@sketch`` on (step, number): about 20 kB each, whatever the number of samples, from which an
        analysis has the spread with its intervals.
    if_exists : {"resume", "error", "replace"}
        What to do with a model that is already in the store.
    split_across_ranks : bool
        Whether, in data-parallel training, each process forwards a share of the probe set; otherwise the first one
        forwards it all and the others do not wait. Where parameters are sharded, all must forward it all.
    model_attrs : mapping, optional
        Facts to keep with the model (a config's hash, a seed).
    codec : {"auto", "raw", "compact", "lossy"}
        How activations are encoded, see :class:`repaudit.TrajectoryWriter`.
    keepbits : int, optional
        Mantissa bits that ``codec="lossy"`` keeps.
    force : bool
        Take the model over from another writer that is known to be dead.
    storage_options : mapping, optional
        Passed to fsspec.

    Examples
    --------
    >>> DEFAULTS["batch_size"], DEFAULTS["on_store_error"]
    (64, 'warn')
    """

    batch_size: int
    forward: Callable[..., Any] | None
    gauge: Callable[[torch.Tensor], Any] | None
    metrics: Callable[[Mapping[str, torch.Tensor]], Mapping[str, float]] | None
    track: Tracker | None
    durable: bool
    on_store_error: OnStoreError
    record: Record
    if_exists: IfExists
    split_across_ranks: bool
    model_attrs: Mapping[str, Any] | None
    codec: CodecName
    keepbits: int | None
    force: bool
    storage_options: Mapping[str, Any] | None


WRITER_OPTIONS: Final = ("durable", "on_store_error", "codec", "keepbits", "force", "storage_options")
"""The keywords that the writer of the store takes."""

DEFAULTS: Final[AuditOptions] = {
    "batch_size": 64,
    "forward": None,
    "gauge": None,
    "metrics": None,
    "track": None,
    "durable": True,
    "on_store_error": "warn",
    "record": ACTIVATIONS,
    "if_exists": "resume",
    "split_across_ranks": False,
    "model_attrs": None,
    "codec": "auto",
    "keepbits": None,
    "force": False,
    "storage_options": None,
}


_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "on_store_error": get_args(OnStoreError), "if_exists": get_args(IfExists), "codec": get_args(CodecName),
}  # fmt: skip
_TRUTH = (bool, "True or False")
_MAPPING = (Mapping, "a mapping of names")
_KINDS: Final[Mapping[str, tuple[Any, str]]] = {
    "forward": (Callable, "a function of a batch's inputs"),
    "gauge": (Callable, "a DiffusionGauge or another callable"),
    "metrics": (Callable, "a function of the activations"),
    "track": (Tracker, "a repaudit.Track"),
    "durable": _TRUTH, "split_across_ranks": _TRUTH, "force": _TRUTH,
    "model_attrs": _MAPPING, "storage_options": _MAPPING,
}  # fmt: skip


def step_of(model: Any, step: Any, call: str = "audit(model, step)") -> int:
    """Return the step of an audit as an int.

    Raises
    ------
    TypeError, ValueError
        When the model is not a module, or the step not a whole number.
    """
    if not isinstance(model, nn.Module):
        swapped = f": the model comes first, {call}" if isinstance(step, nn.Module) else ""
        raise TypeError(f"model: expected a torch module, found {type(model).__name__}{swapped}")
    return whole_number(step, "step")


def check_loss(loss: Any) -> None:
    """Refuse a loss of several numbers with a ValueError.

    Examples
    --------
    >>> check_loss(torch.tensor([0.5]))
    """
    if isinstance(loss, torch.Tensor) and loss.numel() != 1:
        raise ValueError(f"loss: expected one number, found a tensor {tuple(loss.shape)}: pass its mean")


def check_arguments(store: Any, model_name: Any, probe_set: Any, trigger: Any) -> None:
    """Refuse a store, a model's name, a probe set or a trigger that is something else, or in another's place.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected, and what was found.

    Examples
    --------
    >>> check_arguments("run.zarr", "seed0", ProbeSet.from_tensors({"x": torch.eye(2)}), None)
    """
    kinds: Mapping[str, tuple[Any, Any, str]] = {
        "store": (store, (str, PathLike), "a path or URL"),
        "model_name": (model_name, str, "a model's name"),
        "probe_set": (probe_set, ProbeSet, "a ProbeSet (ra.ProbeSet.from_texts, from_tensors)"),
    }
    for name, (value, kind, what) in kinds.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {what}, found {type(value).__name__}")
    check_trigger(trigger)
    if not model_name:
        raise ValueError("model_name: expected a name, found an empty text")
    if _is_of_a_store(model_name) and not _is_of_a_store(str(store)):
        raise ValueError(
            f"model_name: expected a model's name, found {model_name!r}, which looks like a store, and the store "
            f"{str(store)!r}: the store comes first"
        )


def check_trigger(trigger: Any) -> None:
    """Refuse what is no trigger, such as a number of steps, with a TypeError."""
    if not isinstance(trigger, AuditTrigger | None):
        raise TypeError(f"trigger: expected a repaudit.AuditTrigger(every_n_steps=...), found {trigger!r}")


def _is_of_a_store(text: str) -> bool:
    return text.endswith(".zarr") or "://" in text


def checked_options(trigger: AuditTrigger | None, options: AuditOptions) -> AuditOptions:
    """Return the options with defaults for those not given; refuse those that no audit could use.

    Raises
    ------
    ValueError, TypeError
        Naming the option, what was expected, and what was found.

    Examples
    --------
    >>> checked_options(None, {"batch_size": 8})["batch_size"]
    8
    """
    _refuse_unknown(options)
    chosen: AuditOptions = {**DEFAULTS, **options}
    _refuse_other_kinds(chosen)
    chosen["batch_size"] = whole_number(chosen["batch_size"], "batch_size", least=1)
    asked = [name for name in _ONLY_TRAINERS_KNOW if trigger is not None and getattr(trigger, name)]
    if asked:
        raise ValueError(
            f"trigger: a Recorder only knows steps, and {', '.join(asked)} would never fire: call audit(model, step) "
            "where they occur in your loop, or audit by steps (every_n_steps, at_steps, log_spaced, at_start)"
        )
    check_record(chosen["record"], chosen["gauge"])
    return chosen


def _refuse_other_kinds(chosen: AuditOptions) -> None:
    values: Mapping[str, Any] = {**chosen}
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, found {values[name]!r}")
    for name, (kind, what) in _KINDS.items():
        may_be_none = dict(DEFAULTS)[name] is None
        if isinstance(values[name], type) and isinstance(values[name], kind):
            raise TypeError(f"{name}: expected {what}, found the class {values[name].__name__}: call it")
        if not isinstance(values[name], kind) and not (may_be_none and values[name] is None):
            raise TypeError(f"{name}: expected {what}, found {values[name]!r}")
    if chosen["keepbits"] is not None:
        whole_number(chosen["keepbits"], "keepbits", least=1)
    if chosen["keepbits"] is not None and chosen["codec"] != "lossy":
        raise ValueError(f"keepbits={chosen['keepbits']!r} only goes with codec='lossy', found {chosen['codec']!r}")


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    known = ["store", "model_name", "probe_set", "layer_specs", "trigger", *AuditOptions.__annotations__]
    for name in options:
        if name not in AuditOptions.__annotations__:
            if name in AuditTrigger.__dataclass_fields__:
                raise TypeError(f"unexpected keyword {name!r}: pass trigger=repaudit.AuditTrigger({name}=...)")
            close = difflib.get_close_matches(name, known, 1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"unexpected keyword {name!r}{hint}")
