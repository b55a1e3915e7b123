"""What to record: a layer path, what is recorded at that layer, and how its tokens are pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from repaudit.capture.extract.layer_text import parse_layer_text
from repaudit.capture.extract.layout import Layout
from repaudit.capture.extract.path_grammar import parse_path
from repaudit.errors import LayerPathError

ExtractionPoint = Literal["output", "input", "hidden_states"]
Reduction = Literal["mean", "last_token", "cls", "all"]
EveryCall = Literal["mean", "each"]

AUTO: Final = "auto"
"""The mask that the layer's part of the network was given."""


@dataclass(frozen=True)
class LayerSpec:
    """A layer path, what is recorded at that layer, and how its tokens are pooled.

    Parameters
    ----------
    path
        Dotted path from the network: names, ``[i]``, ``[-1]``, slices ``[::4]`` and globs (``layers[*]``, ``layer_*``);
        names with other characters go in brackets and quotes (``experts['en -> de']``). A path that leads nowhere is
        followed from the network's base model: of a ``LlamaForCausalLM`` ``layers[*]`` is ``model.layers[*]``, and
        recorded under that name. In any Hugging Face model
        ``hidden_states[i]`` is that entry of what it returns itself. In any network ``depth:x`` is what the block at
        that relative depth puts out: of L blocks the one numbered x L, rounded, counting from 1; ``depth:0`` is what
        the first block gets. Where there are several lists of blocks, the path before it tells which one is meant:
        ``encoder.depth:0.5``.
    extraction_point
        ``"output"`` of the layer, its ``"input"``, or the entry of the model's own ``"hidden_states"`` that belongs to
        it: entry i + 1 for block i, entry 0 for the embedding layer.
    reduce
        ``"mean"`` over unmasked tokens, the ``"last_token"`` that is not masked, ``"cls"`` (the first one that is not
        masked), or ``"all"`` tokens.
    name
        The layer's name in the record. With a path that matches several layers it must hold ``{path}``.
    call
        Which call is recorded of a module that one forward calls several times: its number from 0 (negative ones from
        the end), the ``"mean"`` of all, or ``"each"`` under a name of its own. None refuses such a module.
    mask
        The name of the input that masks the layer's tokens, None where all count. By default the mask that the layer's
        part of the network is given; learned tokens, as latents and queries, have none.
    layout
        What the dims of the activation are, where that cannot be told: ``"sample"`` and ``"token"``, ``"height"``,
        ``"width"`` or ``"position"``, ``"feature"``, ``"head"`` or ``"channel"`` in their order, as in
        ``"sample head token feature"``; in parentheses what one dim holds together: ``"(sample token) feature"``.
        Heads and channels become features, positions tokens.

    Raises
    ------
    LayerPathError
        When the path does not parse.
    ValueError
        When another parameter is invalid.

    See Also
    --------
    repaudit.ActivationExtractor : Extracts the activations of specs.
    repaudit.Recorder : Writes them into a store.

    Examples
    --------
    A tiny network for the examples: an embedding, three blocks, and a norm.

    >>> from torch import nn
    >>> from repaudit.capture.extract.layer_paths import resolve_layers
    >>> blocks = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
    >>> net = nn.Sequential()
    >>> net.embed, net.layers, net.norm = nn.Embedding(10, 4), nn.ModuleList(blocks), nn.LayerNorm(4)
    >>> def names(*specs):
    ...     return [layer.name for layer in resolve_layers(net, specs)]

    The simplest spec is the name of a module:

    >>> names(LayerSpec("norm"))
    ['norm']

    Wherever a spec is expected, a plain string means the spec of that path, with a name before ``=`` if there is one:

    >>> names("norm", "last=norm")
    ['norm', 'last']

    Lists of modules take an index, which may count from the end:

    >>> names("layers[0]", "layers[-1]")
    ['layers.0', 'layers.2']

    One spec may match several layers, with a slice or with ``*``:

    >>> names("layers[::2]")
    ['layers.0', 'layers.2']
    >>> names("layers[*]")
    ['layers.0', 'layers.1', 'layers.2']

    Names take wildcards as well, and a path continues below all that matched so far:

    >>> names("*m*")
    ['embed', 'norm']
    >>> names("layers[1:][0]")
    ['layers.1.0', 'layers.2.0']

    Models of different depths and architectures have the middle, and the last but one block, under one name:

    >>> names("depth:0.5", "penultimate=layers[-2]")
    ['depth:0.5', 'penultimate']

    By default the output of a layer is recorded; its input is recorded under a name that says so:

    >>> names(LayerSpec("layers[1]", extraction_point="input"))
    ['layers.1@input']

    The same holds for the pooling of tokens, the mean by default, so that one layer can be recorded in two ways:

    >>> names("norm", LayerSpec("norm", reduce="last_token"))
    ['norm', 'norm:last_token']

    ``name`` chooses another name; for several layers it holds ``{path}``:

    >>> names(LayerSpec("embed", name="tokens"), LayerSpec("layers[:2]", name="block {path}"))
    ['tokens', 'block layers.0', 'block layers.1']

    A path that matches nothing is an error, with what could have been meant:

    >>> names("layer[0]")
    Traceback (most recent call last):
        ...
    repaudit.errors.LayerPathError: layer path 'layer[0]': 'layer' not found at the top (Sequential); its children: \
embed, layers, norm; did you mean 'layers[0]'?

    Specs decide the shapes of activations: with ``"mean"`` one row per sample, with ``"all"`` one per token.

    >>> import torch
    >>> from repaudit import ActivationExtractor, ProbeSet
    >>> net = nn.Sequential(nn.Embedding(10, 4), nn.ReLU())
    >>> extractor = ActivationExtractor(["[1]", LayerSpec("[1]", reduce="all")])
    >>> probe_set = ProbeSet.from_tensors({"input": torch.tensor([[1, 2, 3], [4, 5, 6]])})
    >>> {name: tuple(value.shape) for name, value in extractor.extract(net, probe_set).items()}
    {'1': (2, 4), '1:all': (2, 3, 4)}
    """

    path: str
    extraction_point: ExtractionPoint = "output"
    reduce: Reduction = "mean"
    name: str | None = None
    call: int | EveryCall | None = None
    mask: str | None = AUTO
    layout: str | None = None

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("extraction_point", self.extraction_point, get_args(ExtractionPoint)),
            ("reduce", self.reduce, get_args(Reduction)),
        ):
            if value not in allowed:
                raise ValueError(f"{field}: expected one of {', '.join(allowed)}, found {value!r}")
        if self.name is not None and not self.name:
            raise ValueError(f"name: expected a layer's name or None, found {self.name!r}")
        if not (self.call is None or type(self.call) is int or self.call in get_args(EveryCall)):
            raise ValueError(f"call: expected a number, 'mean', 'each' or None, found {self.call!r}")
        if self.mask is not None and not (isinstance(self.mask, str) and self.mask):
            raise ValueError(f"mask: expected the name of an input, or None, found {self.mask!r}")
        if self.layout is not None:
            Layout.parse(self.layout)
        parse_path(self.path)

    def name_for(self, resolved: str) -> str:
        """Return the name, in the record, of the layer at a resolved path.

        Examples
        --------
        >>> LayerSpec("layers[-1]", reduce="cls").name_for("layers.3")
        'layers.3:cls'
        """
        if self.name is not None:
            return self.name.replace("{path}", resolved)
        point = "" if self.extraction_point == "output" else f"@{self.extraction_point}"
        call = "" if self.call in {None, "each"} else f"#{self.call}"
        return resolved + point + ("" if self.reduce == "mean" else f":{self.reduce}") + call


def as_spec(spec: LayerSpec | str) -> LayerSpec:
    """Take a plain string for the spec of that path, named if it says ``NAME=PATH``.

    Raises
    ------
    LayerPathError
        When it does not parse, or is meant for one of several models.

    Examples
    --------
    >>> as_spec("penultimate=layers[-2]") == LayerSpec("layers[-2]", name="penultimate")
    True
    """
    if isinstance(spec, LayerSpec):
        return spec
    text = parse_layer_text(spec)
    if text.model is not None:
        raise LayerPathError(
            f"layer {spec!r} is meant for the model {text.model!r}, but there is one model here: leave {text.model!r} "
            "out, or put a name that holds a colon in quotes"
        )
    return LayerSpec(text.path, name=text.name)
