"""What tests of capturing share: activations of layers, and what hooks of our own see there."""

import pytest
import torch

import repaudit as ra


@pytest.fixture
def seen():
    """Return a function that returns the outputs of layers in one forward, by our own hooks."""

    def see(model, paths, **inputs):
        found = {}
        hooks = [
            model.get_submodule(path).register_forward_hook(
                lambda _module, _args, out, path=path: found.__setitem__(path, out[0] if type(out) is tuple else out)
            )
            for path in paths
        ]
        with torch.no_grad():
            model.eval()(*[inputs.pop(name) for name in ["input"] if name in inputs], **inputs)
        for hook in hooks:
            hook.remove()
        return found

    return see


@pytest.fixture
def extract():
    """Return a function that extracts layers of a model on the inputs that it is given by name."""

    def extracted(layers, model, **inputs):
        return ra.ActivationExtractor(layers).extract(model, ra.ProbeSet.from_tensors(inputs))

    return extracted
