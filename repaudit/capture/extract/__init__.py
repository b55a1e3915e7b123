"""From a model and a probe set to activations: paths, hooks, pooling."""
