"""The activations of a probe set, and of forwards that a caller runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

from repaudit.capture.extract.dry_run import check_initialized, check_vocabulary, dry_run
from repaudit.capture.extract.facts import KnownFacts, are_certain
from repaudit.capture.extract.hooks import Recording
from repaudit.capture.extract.layer import Layer
from repaudit.capture.extract.layer_paths import resolve_layers
from repaudit.capture.extract.layer_spec import LayerSpec, as_spec
from repaudit.capture.extract.wrappers import entry_point, forward_context, is_offloaded, is_sharded, network
from repaudit.capture.isolate.isolation import eager, same_parameters, undisturbed
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.errors import CaptureError, LostRankError, StateError
from repaudit.interrupts import Shield

Agree = Callable[[Exception | None], None]
Result = TypeVar("Result")


class ActivationExtractor:
    """Extract the activations of the layers that specs name.

    Parameters
    ----------
    layer_specs
        Layer specs, or plain paths.

    Attributes
    ----------
    activations
        For each layer the tensor ``(sample[, token], feature)`` of the last extraction.
    source_dtypes
        For each layer the name of the dtype that the model computed.
    layers
        For each activation of the last extraction the layer that it is of.

    See Also
    --------
    repaudit.LayerSpec : Which layers, and what of them.
    repaudit.Recorder : Writes activations into a store.

    Examples
    --------
    >>> from repaudit import ProbeSet
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> extractor = ActivationExtractor(["[0]", LayerSpec("[-1]", extraction_point="input")])
    >>> activations = extractor.extract(model, ProbeSet.from_tensors({"input": torch.eye(2)}))
    >>> {name: tuple(value.shape) for name, value in activations.items()}
    {'0': (2, 3), '2@input': (2, 3)}
    """

    def __init__(self, layer_specs: Sequence[LayerSpec | str] | LayerSpec | str) -> None:
        specs = [layer_specs] if isinstance(layer_specs, str | LayerSpec) else layer_specs
        if not isinstance(specs, Iterable):
            raise TypeError(f"layer_specs: expected layer specs or paths, found {layer_specs!r}")
        self.layer_specs = [as_spec(spec) for spec in specs]
        self.activations: dict[str, torch.Tensor] = {}
        self.source_dtypes: dict[str, str] = {}
        self.layers: dict[str, Layer] = {}
        self._facts = KnownFacts()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle; models, and what they told, are of this process."""
        return {name: value for name, value in self.__dict__.items() if name not in {"_facts", "layers"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.layers = {}
        self._facts = KnownFacts()

    def extract(
        self,
        model: nn.Module,
        probe_set: ProbeSet,
        batch_size: int = 32,
        forward: Callable[..., Any] | None = None,
        agree: Agree | None = None,
    ) -> dict[str, torch.Tensor]:
        """Forward the probe set through the model, which is left unchanged, and return the pooled activations.

        The model runs in evaluation mode, eagerly, without gradients, and only as deep as the deepest layer requested.
        With a new model, or inputs of other shapes, one sample is forwarded whole first, to find a layer that fires
        twice; one that is padded on the left is also forwarded without its padding.

        Parameters
        ----------
        model
            The model as it is trained, wrapped or not; it is not moved.
        probe_set
            The inputs.
        batch_size
            Samples per forward; the result does not depend on it.
        forward
            What to call with a batch's inputs instead of the network itself; its own parameters then count.
        agree
            Called before the first batch, after each, and when the model is restored, with what went wrong or None; it
            raises where one of several processes failed, so that none continues by itself (see
            :meth:`repaudit.capture.record.ranks.Ranks.agree`).

        Returns
        -------
        dict of str to torch.Tensor
            For each layer a CPU tensor ``(sample[, token], feature)``.

        Raises
        ------
        LayerPathError
            When a path does not resolve.
        CaptureError
            When a hook fired several times in one forward, or never, or its value cannot be pooled.
        ProbeSetError
            When the inputs do not fit the model's ``forward``, hold tokens that it does not know, or are padded on the
            left and it counts the padding.
        StateError
            When the forward changed what cannot be put back.

        Examples
        --------
        >>> from repaudit import ProbeSet
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> probe_set = ProbeSet.from_tensors({"input": torch.eye(2)})
        >>> ActivationExtractor("[*]").extract(model, probe_set)["1"].shape
        torch.Size([2, 1])
        """
        found = [type(given).__name__ for given in (model, probe_set)]
        if not (isinstance(model, nn.Module) and isinstance(probe_set, ProbeSet)):
            raise TypeError(f"expected a torch module and a ProbeSet, in this order, found {' and '.join(found)}")
        agree = agree or _raise
        net, call = network(model), forward or entry_point(model)
        whole = is_sharded(model) or is_offloaded(net)
        recording = _agreed(agree, lambda: self._prepared(model, probe_set, whole=whole, forward=forward))
        pieces = _Pieces(len(probe_set))
        is_new = self._facts.of(net, probe_set.inputs) is None
        with Shield() as shield, _leaving(agree), forward_context(model), ExitStack() as stack:
            if is_new and not whole:
                stack.enter_context(same_parameters(net))
            stack.enter_context(undisturbed(model))
            stack.enter_context(recording)
            if is_new:
                with shield.lifted():
                    _agreed(agree, lambda: dry_run(recording, probe_set, call))
                self._facts.keep(net, probe_set.inputs, recording.facts)
            for batch in probe_set.batches(batch_size):
                with shield.lifted():
                    _agreed(agree, partial(pieces.extend, recording, batch, call, probe_set.ids))
        self.layers = recording.recorded
        self.source_dtypes = {name: recording.source_dtypes[layer.name] for name, layer in self.layers.items()}
        self.activations = pieces.finish()
        return dict(self.activations)

    def _prepared(
        self, model: nn.Module, probe_set: ProbeSet, *, whole: bool, forward: Callable[..., Any] | None
    ) -> Recording:
        layers = resolve_layers(model, self.layer_specs)
        facts = self._facts.of(network(model), probe_set.inputs)
        if facts is None:
            check_initialized(network(model))
        check_vocabulary(network(model), probe_set)
        return Recording(model, layers, whole=whole, facts=facts, forward=forward)

    @contextmanager
    def capture(self, model: nn.Module, *, detach: bool = True) -> Iterator[ActivationExtractor]:
        """Record the forwards that are run inside the block; afterwards :attr:`activations` holds them.

        The caller sets the model's mode and gradients. Compiled models run eagerly inside the block, since hooks
        would not fire otherwise. Several forwards are joined along the samples. The mask is the forward's
        ``attention_mask``.

        Parameters
        ----------
        model
            The model that is forwarded inside the block.
        detach
            Copy to the CPU without gradients; False keeps device and graph, for objectives on activations.

        Raises
        ------
        CaptureError
            When a hook never fired, or several times in one forward.

        Examples
        --------
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with ActivationExtractor("[0]").capture(model, detach=False) as extractor:
        ...     output = model(torch.eye(2))
        >>> extractor.activations["0"].shape, extractor.activations["0"].requires_grad
        (torch.Size([2, 3]), True)
        """
        layers = resolve_layers(model, self.layer_specs)
        net = network(model)
        joined: dict[str, list[torch.Tensor]] = {}
        self.activations = {}

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recording.begin_foreign(_named(net, args, kwargs))  # drops what a failed forward left

        def after(*_: Any) -> None:
            recording.check()
            for name, value in recording.seen.items():
                joined.setdefault(name, []).append(value.detach().cpu() if detach else value)
            self.layers = recording.recorded
            recording.begin({})

        with ExitStack() as stack:
            stack.enter_context(eager())
            recording = stack.enter_context(Recording(model, layers, facts=self._facts.certain(net)))
            stack.enter_context(recording.tracking())
            stack.callback(net.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
            stack.callback(net.register_forward_hook(after).remove)
            yield self
            if not joined:
                after()
        if are_certain(recording.facts):
            self._facts.keep(net, None, recording.facts)
        self.source_dtypes = {name: recording.source_dtypes[layer.name] for name, layer in self.layers.items()}
        self.activations = {name: torch.cat(values) for name, values in joined.items()}


def _raise(error: Exception | None) -> None:
    """Raise what went wrong: the agreement of a single process."""
    if error is not None:
        raise error


def _agreed(agree: Agree, action: Callable[[], Result]) -> Result:
    """Run an action that all processes run, and raise on all of them if one failed."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:  # noqa: BLE001 - raised below, once every process knows
        failure = error
    agree(failure)
    return cast(Result, result)


@contextmanager
def _leaving(agree: Agree) -> Iterator[None]:
    """Agree on whether the model is restored on every process, also where the block itself failed on all."""
    failure = None
    try:
        yield
    except LostRankError:
        raise
    except Exception as error:  # noqa: BLE001 - raised below, once every process knows
        failure = error
    agree(failure if isinstance(failure, StateError) else None)
    if failure is not None:
        raise failure


def _named(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(inspect.signature(net.forward).parameters, args, strict=False)) | dict(kwargs)


class _Pieces:
    """The activations of all samples, filled batch by batch into new CPU tensors."""

    def __init__(self, n_samples: int) -> None:
        self._n = n_samples
        self._start = 0
        self._whole: dict[str, torch.Tensor] = {}
        self._devices: set[torch.device] = set()

    def extend(
        self,
        recording: Recording,
        batch: Mapping[str, torch.Tensor],
        call: Callable[..., Any],
        names: Sequence[str],
    ) -> None:
        """Forward a batch as deep as its deepest layer, and keep what the hooks saw."""
        size = len(next(iter(batch.values())))
        names = names[self._start : self._start + size]
        for name, value in recording.forward(batch, stop_early=True, call=call, names=names).items():
            target = self._whole.get(name)
            if target is None:
                target = torch.empty(
                    (self._n, *value.shape[1:]), dtype=value.dtype, pin_memory=value.device.type == "cuda"
                )
                self._whole[name] = target
            if value.shape[1:] != target.shape[1:]:
                raise CaptureError(
                    f"layer {name!r}: from sample {self._start} on the shape is {tuple(value.shape[1:])}, before "
                    f"{tuple(target.shape[1:])}: a layer must have one shape"
                )
            target[self._start : self._start + size].copy_(value, non_blocking=True)
            if value.device.type != "cpu":
                self._devices.add(value.device)
        self._start += size

    def finish(self) -> dict[str, torch.Tensor]:
        """Wait for copies from devices, and return the tensors."""
        for device in self._devices:
            torch.get_device_module(device.type).synchronize(device)
        return self._whole
